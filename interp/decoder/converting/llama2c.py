"""llama2.c: a header, then float32 weights one after the other (github.com/karpathy/llama2.c, export.py).

    legacy      7 int32: dim, hidden_dim, n_layers, n_heads, n_kv_heads, vocab_size, seq_len; a negative vocab_size says
                that the classifier is not the embedding
    version 1   "ak42", version, the same 7, a byte (classifier shared), zeros up to 256 bytes

Version 2 is quantised to int8, and refused. The tokenizer's file is the longest token's length, then for each token its
score, its length and its bytes.
"""

from __future__ import annotations

import math
import random
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from interp.decoder.converting import Converted
from interp.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

MAGIC = 0x616B3432
BOS, EOS, N_FIRST = 1, 2, 259
"""Ids 0 to 2 are unknown, BOS and EOS, the next 256 the bytes."""

NAMES = {
    "attention_norm": "input_layernorm", "wq": "self_attn.q_proj", "wk": "self_attn.k_proj", "wv": "self_attn.v_proj",
    "wo": "self_attn.o_proj", "ffn_norm": "post_attention_layernorm", "w1": "mlp.gate_proj", "w2": "mlp.down_proj",
    "w3": "mlp.up_proj",
}  # fmt: skip
"""llama2.c's names within a layer -> Hugging Face's."""


@dataclass(frozen=True)
class Header:
    version: int
    """0 is the legacy header."""
    dim: int
    hidden_dim: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    vocab_size: int
    seq_len: int
    shared: bool
    n_bytes: int

    @property
    def d_head(self) -> int:
        return self.dim // self.n_heads

    @property
    def layout(self) -> dict[str, tuple[int, ...]]:
        """Name and shape of each block of weights, in the order of the file."""
        layers, dim, hidden, kv = self.n_layers, self.dim, self.hidden_dim, self.n_kv_heads * self.d_head
        attention = {
            "wq": (layers, dim, dim),
            "wk": (layers, kv, dim),
            "wv": (layers, kv, dim),
            "wo": (layers, dim, dim),
        }
        mlp = {"w1": (layers, hidden, dim), "w2": (layers, dim, hidden), "w3": (layers, hidden, dim)}
        norms = {"attention_norm": (layers, dim), "ffn_norm": (layers, dim)}
        embedding, last = {"tok_embeddings": (self.vocab_size, dim)}, {"norm": (dim,)}
        output = {} if self.shared else {"output": (self.vocab_size, dim)}
        if self.version == 1:
            return norms | last | embedding | attention | mlp | output
        rotations = {"freqs_cos": (self.seq_len, self.d_head // 2), "freqs_sin": (self.seq_len, self.d_head // 2)}
        one, two = {"attention_norm": norms["attention_norm"]}, {"ffn_norm": norms["ffn_norm"]}
        return embedding | one | attention | two | mlp | last | rotations | output


def read_header(path: Path) -> Header:
    """InputError for what is no llama2.c file, for a quantised one, and for one whose size is not what it says."""
    with open(path, "rb") as file:
        start = file.read(256)
    if len(start) < 28:
        raise InputError(f"{path} holds {len(start)} bytes: a llama2.c file has a header of 28 or 256.")
    if struct.unpack_from("<I", start)[0] == MAGIC:
        version = struct.unpack_from("<i", start, 4)[0]
        if version == 2:
            raise InputError(f"{path} is quantised to int8 (llama2.c version 2): export it with --version 1.")
        if version != 1 or len(start) < 256:
            raise InputError(f"{path} has a header of llama2.c version {version}: legacy and version 1 are read.")
        sizes, shared, n_bytes = struct.unpack_from("<7i", start, 8), bool(start[36]), 256
    else:
        version, sizes, n_bytes = 0, struct.unpack_from("<7i", start), 28
        shared = sizes[5] > 0
    dim, hidden, layers, heads, kv_heads, vocab, length = sizes
    found = Header(version, dim, hidden, layers, heads, kv_heads, abs(vocab), length, shared, n_bytes)
    sound = min(dim, hidden, layers, heads, kv_heads, abs(vocab), length) > 0 and dim % (2 * heads) == 0
    if not sound or heads % kv_heads:
        raise InputError(
            f"{path} is no llama2.c file: dim {dim}, hidden_dim {hidden}, n_layers {layers}, n_heads {heads}, "
            f"n_kv_heads {kv_heads}, vocab_size {vocab}, seq_len {length} are not the sizes of a model."
        )
    wanted = n_bytes + 4 * sum(math.prod(shape) for shape in found.layout.values())
    if (size := path.stat().st_size) != wanted:
        raise InputError(f"{path} holds {size:,} bytes where its header asks for {wanted:,}: it is cut off or damaged.")
    return found


def read(path: Path, tokenizer: Path | None) -> Converted:
    """The model of a .bin. Without `tokenizer` that beside it, if there is one."""
    header = read_header(path)
    beside = [path.with_name(f"tok{header.vocab_size}.bin"), path.with_name("tokenizer.bin")]
    tokenizer = tokenizer or next((file for file in beside if file.exists()), None)
    state = _state(path, header)
    made = None if tokenizer is None else build_tokenizer(tokenizer, header)
    version = "version 1" if header.version else "legacy header"
    with_ = "no tokenizer: token ids only" if tokenizer is None else f"tokens of {tokenizer.name}"
    return Converted(f"llama2.c, {version}, {with_}", _config(header), state, made)


def _config(header: Header) -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": header.dim,
        "intermediate_size": header.hidden_dim, "num_hidden_layers": header.n_layers,
        "num_attention_heads": header.n_heads, "num_key_value_heads": header.n_kv_heads,
        "vocab_size": header.vocab_size, "max_position_embeddings": header.seq_len, "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0, "hidden_act": "silu", "attention_bias": False, "mlp_bias": False,
        "tie_word_embeddings": header.shared, "bos_token_id": BOS, "eos_token_id": EOS, "dtype": "float32",
    }  # fmt: skip


def _state(path: Path, header: Header) -> dict[str, Tensor]:
    """The weights by Hugging Face's names."""
    parts, at = {}, header.n_bytes
    for name, shape in header.layout.items():
        block = np.memmap(path, "<f4", "r", at, shape)
        at += block.nbytes
        if not name.startswith("freqs"):  # made again from rope_theta
            parts[name] = torch.from_numpy(np.array(block))
    parts["wq"] = half_split(parts["wq"], header.n_heads)
    parts["wk"] = half_split(parts["wk"], header.n_kv_heads)
    state = {"model.embed_tokens.weight": parts["tok_embeddings"], "model.norm.weight": parts["norm"]}
    if not header.shared:
        state["lm_head.weight"] = parts["output"]
    for layer in range(header.n_layers):
        state |= {f"model.layers.{layer}.{theirs}.weight": parts[ours][layer] for ours, theirs in NAMES.items()}
    return state


def half_split(weight: Float[Tensor, "layer out d_model"], n_heads: int) -> Float[Tensor, "layer out d_model"]:
    """Queries' or keys' weights for the other order of a head's rows: llama2.c rotates neighbours (0 with 1, 2 with 3),
    Hugging Face the two halves (0 with d_head / 2)."""
    return rearrange(weight, "layer (head pair two) d -> layer (head two pair) d", head=n_heads, two=2)


def read_vocabulary(path: Path, n: int) -> tuple[list[str], list[float]]:
    """The `n` pieces of a tokenizer's file and their scores."""
    data, at, pieces, scores = path.read_bytes(), 4, [], []
    try:
        for _ in range(n):
            score, length = struct.unpack_from("<fi", data, at)
            at += 8 + length
            if length < 0 or at > len(data):
                raise struct.error
            pieces.append(data[at - length : at].decode("utf-8"))
            scores.append(score)
    except (struct.error, UnicodeDecodeError):
        raise InputError(f"{path} is cut off or damaged at token {len(pieces)} of {n}.") from None
    if at != len(data):
        raise InputError(f"{path} holds more than the {n} tokens of the model: it is another model's tokenizer.")
    bytes_are = pieces[3:N_FIRST] == [f"<0x{byte:02X}>" for byte in range(256)]
    if not bytes_are or len(set(pieces)) < n or not all(map(math.isfinite, scores)):
        raise InputError(
            f"{path} is no llama2.c tokenizer: the bytes do not follow on the first 3 of {n} single tokens."
        )
    return pieces, scores


def encode(text: str, ids: Mapping[str, int], scores: Sequence[float]) -> list[int]:
    """llama2.c's own way to token ids (run.c, encode): a space before the text, characters or their bytes, then always
    the neighbours whose union scores highest become one, the leftmost of equals. Without BOS. Quadratic."""
    pieces = list(ids)
    tokens = [
        token
        for character in (" " + text if text else "")
        for token in ([ids[character]] if character in ids else [byte + 3 for byte in character.encode()])
    ]
    while True:
        unions = [ids.get(pieces[a] + pieces[b]) for a, b in zip(tokens, tokens[1:], strict=False)]
        known = [at for at, union in enumerate(unions) if union is not None]
        if not known:
            return tokens
        best = max(known, key=lambda at: (scores[unions[at]], -at))
        tokens[best : best + 2] = [unions[best]]


def build_tokenizer(path: Path, header: Header) -> PreTrainedTokenizerFast:
    """A tokenizer with the ids that `encode` gives, tried on texts made of its own pieces. In it, as in llama2.c, a
    space is a space (not "▁"), and "<s>" in a text is three characters."""
    from tokenizers import Tokenizer, decoders, models, normalizers, processors
    from transformers import PreTrainedTokenizerFast

    pieces, scores = read_vocabulary(path, header.vocab_size)
    ids = {piece: token for token, piece in enumerate(pieces)}
    special = ["<unk>", "<s>", "</s>"]
    vocabulary = (
        ids if special == pieces[:3] else dict(zip(special, range(3), strict=True)) | dict(list(ids.items())[3:])
    )
    splits = [
        (-scores[token], token, piece[:cut], piece[cut:])
        for token, piece in enumerate(pieces[N_FIRST:], N_FIRST)
        for cut in range(1, len(piece))
        if piece[:cut] in ids and piece[cut:] in ids
    ]
    merges = [(left, right) for _, _, left, right in sorted(splits)]
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Prepend(" ")
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    _try(tokenizer, ids, scores, path)
    tokenizer.post_processor = processors.TemplateProcessing("<s> $A", "<s> $A <s> $B", [("<s>", BOS)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>",
        model_max_length=header.seq_len, clean_up_tokenization_spaces=False, split_special_tokens=True,
    )  # fmt: skip


def _try(tokenizer: Any, ids: Mapping[str, int], scores: Sequence[float], path: Path) -> None:
    """InputError where a text is split otherwise than `encode` does: merges have no ties, scores may."""
    draw, pieces = random.Random(0), list(ids)[N_FIRST:]
    texts = ["".join(draw.choices(pieces, k=draw.randint(1, 8))) for _ in range(300)] if pieces else []
    for text in [*texts, "aaaaaaa", "Zoë's 1,000\n\t☃ \u2581 \U0001f600!!!!!  ..."]:
        if tokenizer.encode(text, add_special_tokens=False).ids != encode(text, ids, scores):
            raise InputError(f"{path}: tokens of equal scores; no Hugging Face tokenizer splits {text!r} as llama2.c.")
