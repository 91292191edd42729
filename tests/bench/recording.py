"""How fast a store is recorded (tests/bench/store.py --only record,gpu)."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import torch
from timing import medians, say


def random_model(folder: Path, device: str, **config):
    from tokenizers import Tokenizer, models
    from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

    from interp.decoder.loading import load_model

    torch.manual_seed(0)
    dtype = config.pop("dtype", "float32")
    folder.mkdir(parents=True, exist_ok=True)
    GPT2LMHeadModel(GPT2Config(**config)).save_pretrained(folder)
    end = "<|endoftext|>"
    words = Tokenizer(models.WordLevel({end: 0, **{f"w{i}": i for i in range(1, 1000)}}, unk_token=end))
    from tokenizers import pre_tokenizers

    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=words, bos_token=end, eos_token=end, unk_token=end).save_pretrained(folder)
    return load_model(str(folder), device=device, dtype=dtype)


def bench_recording(folder: Path, name: str, model, site: str, n_tokens: int, rounds: int, text, **settings) -> None:
    """Tokens a second of `record` against the bare forward passes of the plain Hugging Face model (its logits not
    made: `base_model`), on the same windows."""
    from transformers import AutoModelForCausalLM

    from interp import record
    from interp.decoder.sources import BUNDLED

    source = BUNDLED if model.name == "bundled" else model.name
    plain = AutoModelForCausalLM.from_pretrained(source, dtype=model.dtype).to(model.device).eval().base_model
    sample = record(model, text, sites=site, n_tokens=n_tokens, out=folder / "sample", progress=False, **settings)
    tokens = torch.from_numpy(sample.tokens[:].astype(np.int64)).unflatten(0, (-1, sample.context)).to(model.device)
    size = sample.description["batch_size"]

    def bare() -> None:
        with torch.no_grad():
            for batch in tokens.split(size):
                plain(batch, use_cache=False)
        if model.device.type == "cuda":
            torch.cuda.synchronize()

    def ours() -> None:
        shutil.rmtree(folder / "out", ignore_errors=True)
        record(model, text, sites=site, n_tokens=n_tokens, out=folder / "out", progress=False, **settings)

    took = medians({"bare": bare, "ours": ours}, rounds)
    n = sample.n_rows
    say(f"recording {name} / bare forward passes", took["bare"] / took["ours"], 0.85,
        f"{n / took['ours']:,.0f} of {n / took['bare']:,.0f} tokens/s")  # fmt: skip
    for path in (folder / "sample", folder / "out"):
        shutil.rmtree(path, ignore_errors=True)


def bench_record(folder: Path, rounds: int) -> None:
    from interp import load_model

    text = folder / "words.txt"
    rng = np.random.default_rng(0)
    text.write_text(" ".join(f"w{i}" for i in rng.integers(1, 1000, 60_000)))
    bundled = load_model("bundled")
    last = f"{bundled.n_layers - 1}.resid_post"
    bench_recording(folder, f"{last} of the bundled model", bundled, last, 50_000, rounds, "bundled")
    small = random_model(folder / "gpt2", "cpu", n_positions=1024)
    bench_recording(folder, "11.resid_post of a GPT-2 small", small, "11.resid_post", 8_192, max(2, rounds // 2), text)


def bench_gpu(folder: Path, rounds: int) -> None:
    text = folder / "words.txt"
    rng = np.random.default_rng(0)
    text.write_text(" ".join(f"w{i}" for i in rng.integers(1, 1000, 1_100_000)))
    model = random_model(
        folder / "medium", "cuda", n_layer=24, n_embd=1024, n_head=16, n_positions=1024, dtype="bfloat16"
    )  # fmt: skip
    bench_recording(
        folder, "*.resid_post of 24 layers of 1024, bf16", model, "*.resid_post", 1_000_000, rounds, text,
        dtype="bfloat16", context=512,
    )  # fmt: skip
