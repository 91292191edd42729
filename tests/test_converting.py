"""llama2.c files and nanoGPT checkpoints become Hugging Face directories with the same logits and the same tokens."""

import json
import random
import struct
from pathlib import Path

import pytest
import torch

SHARED = Path(__file__).parent.parent.parent / "shared" / "models"
needs_shared = pytest.mark.skipif(not SHARED.exists(), reason="../shared/models is not here")
BIN, VOCABULARY = SHARED / "llama2c" / "stories260K.bin", SHARED / "llama2c" / "tok512.bin"


@pytest.fixture(scope="module")
def stories(tmp_path_factory):
    from interp.decoder.converting import convert

    if not SHARED.exists():
        pytest.skip("../shared/models is not here")
    folder = tmp_path_factory.mktemp("converted") / "stories"
    convert(BIN, folder)
    return folder


def test_a_llama2c_file_has_the_weights_and_logits_of_its_hugging_face_directory(stories):
    from safetensors.torch import load_file

    from interp import load_model

    ours, theirs = (load_file(folder / "model.safetensors") for folder in (stories, SHARED / "stories260K"))
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
    tokens = torch.randint(0, 512, (3, 50), generator=torch.Generator().manual_seed(0))
    one, two = (load_model(str(folder)) for folder in (stories, SHARED / "stories260K"))
    assert torch.equal(one(tokens), two(tokens))
    assert "a little girl named Lily" in one.tokenizer.decode(_greedy(one, one.to_tokens("Once upon a time"), 12))


def _greedy(model, ids, n):
    for _ in range(n):
        ids = [*ids, int(model(torch.tensor([ids]))[0, -1].argmax())]
    return ids


TEXTS = [
    "", " ", "Once upon a time, there was a little girl named Lily.", "  two  spaces\n\nand\ttabs",
    "Zoë's ☃ naïve 日本",
    "aaaaaaaaaa bbbbb", "<s> and </s> are text here", "<0x0A> too", "▁ is no space", "1,234.56?!", "\U0001f600",
]  # fmt: skip


def test_token_ids_are_those_of_llama2c(stories):
    from transformers import AutoTokenizer

    from interp.decoder.converting.llama2c import encode, read_vocabulary

    pieces, scores = read_vocabulary(VOCABULARY, 512)
    ids, tokenizer = {piece: token for token, piece in enumerate(pieces)}, AutoTokenizer.from_pretrained(stories)
    draw = random.Random(1)
    texts = TEXTS + ["".join(draw.choices(pieces[259:], k=6)) for _ in range(100)]
    for text in texts:
        assert tokenizer.encode(text, add_special_tokens=False) == encode(text, ids, scores), text
        assert tokenizer.decode(tokenizer.encode(text), skip_special_tokens=True) == text
    theirs = AutoTokenizer.from_pretrained(SHARED / "stories260K")
    for text in TEXTS[:6]:
        assert tokenizer(text).input_ids == theirs(text).input_ids


def write_version_1(path, header, blocks, version=1):
    """A version 1 file of the legacy file's blocks, its classifier made another than the embedding."""
    order = ["attention_norm", "ffn_norm", "norm", "tok_embeddings", "wq", "wk", "wv", "wo", "w1", "w2", "w3"]
    sizes = (header.dim, header.hidden_dim, header.n_layers, header.n_heads, header.n_kv_heads, header.vocab_size,
             header.seq_len)  # fmt: skip
    start = struct.pack("<Ii7iB", 0x616B3432, version, *sizes, 0).ljust(256, b"\0")
    body = b"".join(blocks[name].tobytes() for name in order) + (2 * blocks["tok_embeddings"]).tobytes()
    path.write_bytes(start + body)


@needs_shared
def test_version_1_holds_the_same_in_another_order(stories, tmp_path):
    import numpy as np
    from safetensors.torch import load_file

    from interp.decoder.converting import convert, llama2c

    header, blocks, at = llama2c.read_header(BIN), {}, 28
    for name, shape in header.layout.items():
        blocks[name] = np.fromfile(BIN, "<f4", int(np.prod(shape)), offset=at)
        at += blocks[name].nbytes
    write_version_1(tmp_path / "one.bin", header, blocks)
    made = convert(tmp_path / "one.bin", tmp_path / "one")
    assert made.source == "llama2.c, version 1, no tokenizer: token ids only"
    legacy, state = load_file(stories / "model.safetensors"), load_file(tmp_path / "one" / "model.safetensors")
    assert torch.equal(state.pop("lm_head.weight"), 2 * state["model.embed_tokens.weight"])
    assert state.keys() == legacy.keys() and all(torch.equal(state[name], legacy[name]) for name in state)
    write_version_1(tmp_path / "two.bin", header, blocks, version=2)
    assert "quantised to int8" in _refusal(tmp_path / "two.bin", tmp_path / "two")


def _refusal(source, to, *flags):
    """The one line that the command prints, exit 2 and nothing written."""
    import contextlib
    import io

    from interp.cli import main

    with contextlib.redirect_stderr(io.StringIO()) as said:
        code = main(["model", "convert", str(source), "--to", str(to), *map(str, flags)])
    assert code == 2 and said.getvalue().count("\n") == 1, said.getvalue()
    assert not to.exists() and not list(to.parent.glob(".*.tmp"))
    return said.getvalue()


@needs_shared
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda data: data[:-4], "cut off or damaged"),
        (lambda data: data + b"\0", "cut off or damaged"),
        (lambda data: data[:20], "holds 20 bytes"),
        (lambda data: b"", "holds 0 bytes"),
        (lambda data: struct.pack("<7i", *[2**31 - 2] * 7) + data[28:], "are not the sizes|cut off or damaged"),
        (lambda data: struct.pack("<7i", 64, 172, 5, 0, 4, 512, 512) + data[28:], "are not the sizes"),
        (lambda data: struct.pack("<7i", 64, 172, 5, 8, 3, 512, 512) + data[28:], "are not the sizes"),
        (lambda data: struct.pack("<Ii", 0x616B3432, 7) + data, "version 7"),
        (lambda data: b"PK" + data, "not a file of weights"),
        (lambda data: b"{}", "holds 2 bytes"),
    ],
)  # fmt: skip
def test_a_damaged_llama2c_file_is_one_line(damage, message, tmp_path):
    import re

    (tmp_path / "model.bin").write_bytes(damage(BIN.read_bytes()))
    assert re.search(message, _refusal(tmp_path / "model.bin", tmp_path / "to"))


@needs_shared
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda data: data[:3000], "damaged at token"),
        (lambda data: data + b"\0\0", "more than the 512 tokens"),
        (lambda data: data[:8] + struct.pack("<i", -5) + data[12:], "damaged at token 0"),
        (lambda data: data[:8] + struct.pack("<i", 2**30) + data[12:], "damaged at token 0"),
        (lambda data: data.replace(b"<0x41>", b"<0x42>"), "no llama2.c tokenizer"),
    ],
)
def test_a_damaged_vocabulary_is_one_line(damage, message, tmp_path):
    (tmp_path / "tok.bin").write_bytes(damage(VOCABULARY.read_bytes()))
    assert message in _refusal(BIN, tmp_path / "to", "--tokenizer", tmp_path / "tok.bin")


class NanoGPT(torch.nn.Module):
    """nanoGPT's model.py, as short as it goes."""

    def __init__(self, n_layer, n_head, n_embd, block_size, bias, vocab_size):
        super().__init__()
        nn, self.n_head, d = torch.nn, n_head, n_embd

        def block():
            return nn.ModuleDict({
                "ln_1": nn.LayerNorm(d, bias=bias), "ln_2": nn.LayerNorm(d, bias=bias),
                "attn": nn.ModuleDict({"c_attn": nn.Linear(d, 3 * d, bias), "c_proj": nn.Linear(d, d, bias)}),
                "mlp": nn.ModuleDict({"c_fc": nn.Linear(d, 4 * d, bias), "c_proj": nn.Linear(4 * d, d, bias)}),
            })  # fmt: skip

        self.transformer = nn.ModuleDict({
            "wte": nn.Embedding(vocab_size, d), "wpe": nn.Embedding(block_size, d),
            "h": nn.ModuleList(block() for _ in range(n_layer)), "ln_f": nn.LayerNorm(d, bias=bias),
        })  # fmt: skip
        self.lm_head = nn.Linear(d, vocab_size, bias=False)
        self.transformer["wte"].weight = self.lm_head.weight
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=0.3)

    def forward(self, tokens):
        t = self.transformer
        x = t["wte"](tokens) + t["wpe"](torch.arange(tokens.shape[1]))
        for block in t["h"]:
            q, k, v = (
                part.unflatten(2, (self.n_head, -1)).transpose(1, 2)
                for part in block["attn"]["c_attn"](block["ln_1"](x)).chunk(3, -1)
            )
            z = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
            x = x + block["attn"]["c_proj"](z.transpose(1, 2).flatten(2))
            x = x + block["mlp"]["c_proj"](torch.nn.functional.gelu(block["mlp"]["c_fc"](block["ln_2"](x))))
        return self.lm_head(t["ln_f"](x))


def checkpoint(path, *, compiled=False, **change):
    args = {"n_layer": 2, "n_head": 2, "n_embd": 16, "block_size": 24, "bias": False, "vocab_size": 40} | change
    torch.manual_seed(0)
    model = NanoGPT(**args)
    state = {("_orig_mod." if compiled else "") + name: tensor for name, tensor in model.state_dict().items()}
    torch.save({"model": state, "model_args": args | {"dropout": 0.0}, "iter_num": 5,
                "best_val_loss": torch.tensor(1.0), "config": {"out_dir": "out"}, "optimizer": {}}, path)  # fmt: skip
    return model


@pytest.mark.parametrize("bias", [False, True])
def test_a_nanogpt_checkpoint_has_its_own_logits(bias, tmp_path):
    from interp import load_model
    from interp.decoder.converting import convert

    theirs = checkpoint(tmp_path / "ckpt.pt", bias=bias, compiled=bias)
    convert(tmp_path / "ckpt.pt", tmp_path / "to")
    model = load_model(str(tmp_path / "to"))
    tokens = torch.randint(0, 40, (3, 24), generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(model(tokens), theirs(tokens), rtol=1e-5, atol=1e-5)  # the order of float32 sums
    assert model.tokenizer is None and model.bos is None and model.d_vocab == 40


def test_characters_of_nanogpt_are_given_as_json(tmp_path):
    from interp import load_model
    from interp.decoder.converting import convert

    checkpoint(tmp_path / "ckpt.pt")
    characters = list("\n !abcdefghijklmnopqrstuvwxyz")
    (tmp_path / "chars.json").write_text(json.dumps({"stoi": {c: i for i, c in enumerate(characters)}}))
    convert(tmp_path / "ckpt.pt", tmp_path / "to", tokenizer=tmp_path / "chars.json")
    model = load_model(str(tmp_path / "to"))
    ids = model.to_tokens("ab  c\n!")
    assert ids == [characters.index(c) for c in "ab  c\n!"] and model.tokenizer.decode(ids) == "ab  c\n!"
    assert model.bos is None and model(torch.tensor([ids])).shape == (1, 7, 40)


def test_a_tokenizers_directory_serves_a_padded_vocabulary(tiny_dir, tiny_model, tmp_path):
    from interp import load_model
    from interp.decoder.converting import convert

    checkpoint(tmp_path / "ckpt.pt", vocab_size=448)
    convert(tmp_path / "ckpt.pt", tmp_path / "to", tokenizer=tiny_dir)
    model = load_model(str(tmp_path / "to"))
    assert model.to_tokens("When Mary") == tiny_model.to_tokens("When Mary") and model.d_vocab == 448
    checkpoint(tmp_path / "small.pt")
    assert "another model's tokenizer" in _refusal(tmp_path / "small.pt", tmp_path / "no", "--tokenizer", tiny_dir)


class Harm:
    def __reduce__(self):
        return print, ("unpickled",)


def test_a_hostile_checkpoint_is_one_line_and_runs_nothing(tmp_path, capsys):
    good = tmp_path / "good.pt"
    checkpoint(good)

    def refused(change, message):
        torch.save(change(torch.load(good, weights_only=True)), tmp_path / "bad.pt")
        assert message in _refusal(tmp_path / "bad.pt", tmp_path / "to")

    refused(lambda c: c | {"config": Harm()}, "not a file of weights alone")
    refused(lambda c: c["model"], "no nanoGPT checkpoint")
    refused(lambda c: c | {"model_args": c["model_args"] | {"n_layer": 10**9}}, "n_layer 1000000000")
    refused(lambda c: c | {"model_args": c["model_args"] | {"n_head": 3}}, "not 3 heads of one size")
    refused(lambda c: c | {"model_args": c["model_args"] | {"n_embd": "16"}}, "n_embd '16'")
    refused(lambda c: c | {"model_args": c["model_args"] | {"block_size": 48}}, "wpe.weight is (24, 16)")
    refused(lambda c: c | {"model": c["model"] | {"extra": torch.zeros(2)}}, "extra is none of nanoGPT's")
    refused(lambda c: c | {"model": dict(list(c["model"].items())[1:])}, "is missing")
    (tmp_path / "cut.pt").write_bytes(good.read_bytes()[:3000])
    assert "not a file of weights alone" in _refusal(tmp_path / "cut.pt", tmp_path / "to")
    for content in ('{"a": 0, "b": 5}', '["ab"]', '["a", "a"]', "3", "{", '{"a": [0]}'):
        (tmp_path / "chars.json").write_text(content)
        _refusal(good, tmp_path / "to", "--tokenizer", tmp_path / "chars.json")
    assert "unpickled" not in capsys.readouterr().out


def test_a_directory_that_exists_is_refused(tmp_path):
    from interp.cli import main

    checkpoint(tmp_path / "ckpt.pt")
    ask = ["model", "convert", str(tmp_path / "ckpt.pt"), "--to", str(tmp_path / "to")]
    assert main(ask) == 0 and main(ask) == 2 and main([*ask[:2], "nothing.bin", *ask[3:]]) == 2
    assert main([*ask[:4], str(tmp_path / "new"), "--activation", "relu"]) == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ckpt.pt", "to"]


@pytest.fixture
def gguf_file(tmp_path):
    """A random Llama as llama.cpp writes it: queries and keys with their halves interleaved."""
    gguf = pytest.importorskip("gguf", reason="the package gguf is not installed")
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, hidden_size=32, intermediate_size=48,
        vocab_size=120, max_position_embeddings=32, initializer_range=0.2, tie_word_embeddings=False,
    )  # fmt: skip
    hf = LlamaForCausalLM(config).eval()
    path, rope = tmp_path / "tiny.gguf", float(getattr(config, "rope_theta", 10_000.0) or 10_000.0)
    writer = gguf.GGUFWriter(str(path), "llama")
    for name, value in (
        ("context_length", 32), ("embedding_length", 32), ("block_count", 2), ("feed_forward_length", 48),
        ("head_count", 4), ("head_count_kv", 2), ("layer_norm_rms_eps", config.rms_norm_eps),
        ("rope_dimension_count", 8), ("rope_freq_base", rope), ("vocab_size", 120),
    ):  # fmt: skip
        getattr(writer, f"add_{name}")(value)
    names = {
        "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
    }  # fmt: skip
    ends = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
    for key, tensor in hf.state_dict().items():
        module = key.removesuffix(".weight")
        _, _, inside = module.partition("model.layers.")
        layer, _, part = inside.partition(".")
        n_heads = {"self_attn.q_proj": 4, "self_attn.k_proj": 2}.get(part)
        if n_heads:
            tensor = tensor.unflatten(0, (n_heads, 2, -1)).transpose(1, 2).flatten(0, 2)
        writer.add_tensor(f"{ends[module] if module in ends else f'blk.{layer}.{names[part]}'}.weight",
                          tensor.contiguous().numpy())  # fmt: skip
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path, hf


def test_a_gguf_file_has_the_logits_of_the_model_it_was_made_of(gguf_file, tmp_path, capsys):
    from interp import load_model
    from interp.cli import main

    path, hf = gguf_file
    assert main(["model", "convert", str(path), "--to", str(tmp_path / "made")]) == 0
    assert "a GGUF file (llama)" in capsys.readouterr().out
    model = load_model(str(tmp_path / "made"))
    tokens = torch.randint(0, 119, (2, 9), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        torch.testing.assert_close(model(tokens), hf(tokens).logits, rtol=0, atol=2e-5)  # sums in another order
    assert main(["model", "info", str(path)]) == 2
    assert "interp model convert" in capsys.readouterr().err
    path.write_bytes(path.read_bytes()[:300])
    assert main(["model", "convert", str(path), "--to", str(tmp_path / "cut")]) == 2
    assert "cannot be read" in capsys.readouterr().err and not (tmp_path / "cut").exists()
