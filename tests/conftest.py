"""The tiny model and the tiny store. Our packages are imported in fixtures, so that the jaxtyping check comes first."""

from __future__ import annotations

import os
import random
import zlib
from pathlib import Path

import numpy as np
import pytest

FIRST = ("test_notebooks.py", "test_demo.py", "test_store_crashes.py", "test_bundled.py", "test_browser_story.py")
"""The files that take longest begin first: the last to begin is what the other workers wait for."""

os.environ["OMP_NUM_THREADS"] = "1"  # of the processes that tests start, as `one_thread` says of this one
os.environ["HF_HUB_OFFLINE"] = "1"  # read when huggingface_hub is imported: set later, it does nothing


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    """Tiny models are fastest on one thread, and the sums of one thread are the same in every run."""
    import torch

    torch.set_num_threads(1)


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: FIRST.index(item.path.name) if item.path.name in FIRST else len(FIRST))


def seed(name: str) -> None:
    """The shared generators, so that what is drawn without one of its own is the same whatever ran before."""
    import torch

    number = zlib.crc32(name.encode())
    random.seed(number)
    np.random.seed(number)
    torch.manual_seed(number)


@pytest.hookimpl(tryfirst=True)
def pytest_fixture_setup(fixturedef):
    seed(fixturedef.argname)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_call(item):
    seed(item.name)


TEXT = (
    "When Mary and John went to the shop, John gave a bag to Mary. The keys to the cabinet are old. "
    "The capital of France is Paris. A small dog ran along the road to the garden and found a letter. "
)


@pytest.fixture(scope="session")
def tiny_dir(tmp_path_factory) -> Path:
    """A random GPT-2 as a Hugging Face directory: 2 layers, 4 heads, d_model 32, 64 positions, with a tokenizer."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("tiny") / "tiny"
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=["<|endoftext|>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )  # fmt: skip
    words = " Mary John Tom James Anna Jane shop store bag drink key keys book books is are garden garden"
    tokenizer.train_from_iterator([TEXT, words] * 20, trainer)
    end = "<|endoftext|>"
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=end, eos_token=end, unk_token=end).save_pretrained(
        folder
    )
    torch.manual_seed(0)
    config = GPT2Config(
        n_layer=2, n_head=4, n_embd=32, n_positions=64, vocab_size=tokenizer.get_vocab_size(), bos_token_id=0,
        eos_token_id=0, initializer_range=0.4,
    )  # fmt: skip
    GPT2LMHeadModel(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_model(tiny_dir):
    from interp.decoder.loading import load_model

    return load_model(str(tiny_dir))


@pytest.fixture(scope="session")
def tiny_double(tiny_dir):
    """The tiny model in float64: two ways to a number then differ by far less than a tolerance for float32."""
    from interp.decoder.loading import load_model

    return load_model(str(tiny_dir), dtype="float64")


@pytest.fixture(scope="session")
def tiny_text(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("text") / "tiny.txt"
    path.write_text(TEXT * 130, encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def tiny_store(tiny_model, tiny_text, tmp_path_factory):
    """About 4,000 rows of 0.resid_post and 1.resid_post, windows of 32 tokens."""
    from interp.store.recording import record

    out = tmp_path_factory.mktemp("stores") / "tiny"
    return record(tiny_model, str(tiny_text), sites="*.resid_post", n_tokens=4000, context=32, out=out, progress=False)


@pytest.fixture(scope="session")
def pairs(tiny_model):
    """Twelve prompt pairs of one length that differ in one token."""
    import torch

    from interp.data.tasks import Prompt, Task

    generator = torch.Generator().manual_seed(1)
    clean = torch.randint(1, tiny_model.d_vocab, (12, 9), generator=generator)
    corrupted = clean.clone()
    corrupted[:, 3] = (corrupted[:, 3] + 7) % tiny_model.d_vocab
    answers = torch.randint(1, tiny_model.d_vocab, (12, 2), generator=generator)
    return Task(
        "pairs",
        [
            Prompt(c, [(8, a)], d, w, {"changed": 3, "end": 8})
            for c, d, (a, w) in zip(clean.tolist(), corrupted.tolist(), answers.tolist(), strict=True)
        ],
    )


@pytest.fixture(scope="session")
def make_dictionary():
    """A random dictionary of an architecture; about a third of its latents fire at a token where k does not say."""
    import torch

    def make(architecture="topk", *, d_in=32, d_out=None, d_sae=64, k=4, skip=False, seed=0, **where):
        from sae.dictionary import Dictionary

        draw = torch.Generator().manual_seed(seed)

        def normal(*shape):
            return torch.randn(*shape, generator=draw)

        d_out = d_out or d_in
        W_dec = normal(d_sae, d_out)
        W_enc = W_dec.T.contiguous() / d_in if d_in == d_out else normal(d_in, d_sae) / d_in
        extra = {
            "jumprelu": {"threshold": normal(d_sae).abs() * 0.3}, "topk": {"k": k}, "abstopk": {"k": k},
            "gated": {"r_mag": normal(d_sae) * 0.2, "b_mag": normal(d_sae) * 0.1},
        }.get(architecture, {})  # fmt: skip
        if skip:
            extra["W_skip"] = normal(d_out, d_in) / d_in
        where.setdefault("site", "blocks.1.hook_resid_post")
        return Dictionary(
            W_enc, normal(d_sae) * 0.3 - 0.3, W_dec, normal(d_out) * 0.1, architecture=architecture, **extra, **where
        ).requires_grad_(False)

    return make


def config_of(family, n_tokens):
    from transformers import GPT2Config, GPTNeoXConfig, LlamaConfig, MixtralConfig, OPTConfig

    ids = {"vocab_size": n_tokens, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
    sizes = {"num_hidden_layers": 3, "num_attention_heads": 4, "hidden_size": 32, "max_position_embeddings": 32}
    wide = sizes | {"intermediate_size": 48, "initializer_range": 0.2}
    return {
        "gpt2": lambda: GPT2Config(n_layer=3, n_head=4, n_embd=32, n_positions=32, initializer_range=0.2, **ids),
        "llama": lambda: LlamaConfig(num_key_value_heads=2, **wide, **ids),
        "mixtral": lambda: MixtralConfig(num_key_value_heads=2, num_local_experts=4, **wide, **ids),
        "opt": lambda: OPTConfig(ffn_dim=48, word_embed_proj_dim=32, init_std=0.2, **sizes, **ids),
        "neox": lambda: GPTNeoXConfig(**wide, **ids),
    }[family]()


@pytest.fixture(scope="session")
def make_model(tiny_dir, tmp_path_factory):
    """A random model of 3 layers of a family (`config_of`), with the tiny model's tokenizer."""

    def make(family):
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        from interp.decoder.loading import load_model

        folder = tmp_path_factory.mktemp(family)
        tokenizer = AutoTokenizer.from_pretrained(tiny_dir)
        torch.manual_seed(0)
        AutoModelForCausalLM.from_config(config_of(family, len(tokenizer))).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return load_model(str(folder))

    return make


@pytest.fixture(scope="session")
def mixture_dir(tiny_dir, tmp_path_factory):
    """A random mixture of experts of a family (tests/mixtures.py) as a directory."""
    made = {}

    def make(family):
        from mixtures import write
        from transformers import AutoTokenizer

        if family not in made:
            made[family] = tmp_path_factory.mktemp(family)
            write(family, made[family], AutoTokenizer.from_pretrained(tiny_dir))
        return made[family]

    return make


@pytest.fixture(scope="session")
def mixtral(mixture_dir):
    from interp.decoder.loading import load_model

    return load_model(str(mixture_dir("Mixtral")), dtype="float64")


@pytest.fixture(scope="session")
def texts():
    """Twenty documents, short and of several windows, with duplicates, an empty one and one in another script."""
    from texts import some_texts

    texts = some_texts(20, longest=40)
    texts[7] = texts[3]
    texts[10] = ""
    texts[11] = "Мария пошла в магазин и дала сумку Ивану. OK"
    texts[19] = texts[0]
    return texts


@pytest.fixture(scope="session")
def jsonl(texts, tmp_path_factory):
    from texts import write_jsonl

    return write_jsonl(tmp_path_factory.mktemp("corpus") / "some.jsonl", texts)


@pytest.fixture(scope="session")
def large(tmp_path_factory):
    """Two files, enough for a worker to be far ahead and still at work."""
    from texts import some_texts, write_jsonl

    folder = tmp_path_factory.mktemp("large")
    for name in ("a", "b"):
        write_jsonl(folder / f"{name}.jsonl", [f"{name} {text}" for text in some_texts(600, longest=270)])
    return folder
