"""nanoGPT: a ckpt.pt of `model_args` and the state dict `model` (github.com/karpathy/nanoGPT, train.py), as GPT-2.

A Linear there is a Conv1D in GPT-2, its matrix the other way round. A model without biases gets biases of 0. A padded
vocabulary (50304 of 50257) keeps its rows, so that logits are the same. `meta.pkl` is a pickle and never read: the
characters are given as .json.
"""

from __future__ import annotations

import json
from pathlib import Path
from pickle import UnpicklingError
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from interp.decoder.converting import Converted
from interp.errors import InputError, nearest

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ACTIVATIONS = ("gelu", "gelu_new")
SIZES = ("n_layer", "n_head", "n_embd", "block_size", "vocab_size")
_TURNED = ("attn.c_attn.weight", "attn.c_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight")


def read(path: Path, tokenizer: Path | None, activation: str) -> Converted:
    """The model of a checkpoint; the tokenizer only where it is given."""
    if activation not in ACTIVATIONS:
        raise InputError(f'activation "{activation}" given. Nearest: {nearest(activation, ACTIVATIONS)}.')
    args, theirs = _checkpoint(path)
    state = _state(path, args, theirs)
    tied = torch.equal(state["lm_head.weight"], state["transformer.wte.weight"])
    if tied:
        del state["lm_head.weight"]
    made = None if tokenizer is None else _tokenizer(tokenizer, args["vocab_size"], args["block_size"])
    bos, eos = (None, None) if made is None else (made.bos_token_id, made.eos_token_id)
    config = {
        "architectures": ["GPT2LMHeadModel"], "model_type": "gpt2", "n_layer": args["n_layer"],
        "n_head": args["n_head"], "n_embd": args["n_embd"], "n_positions": args["block_size"],
        "vocab_size": args["vocab_size"], "activation_function": activation, "layer_norm_epsilon": 1e-5,
        "attn_pdrop": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0, "tie_word_embeddings": tied, "bos_token_id": bos,
        "eos_token_id": eos, "dtype": str(state["transformer.wte.weight"].dtype).removeprefix("torch."),
    }  # fmt: skip
    with_ = "no tokenizer: token ids only" if tokenizer is None else f"tokens of {tokenizer.name}"
    return Converted(f"nanoGPT, {activation}, {with_}", config, state, made)


def _checkpoint(path: Path) -> tuple[dict[str, int], dict[str, Tensor]]:
    """The sizes and the state dict, checked to be what they should be."""
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except (UnpicklingError, RuntimeError, EOFError, ValueError, KeyError, IndexError, AttributeError, TypeError) as e:
        raise InputError(f"{path} is not a file of weights alone, or damaged: {str(e).splitlines()[0]}") from None
    args, state = (found.get(key) if isinstance(found, dict) else None for key in ("model_args", "model"))
    if not isinstance(args, dict) or not isinstance(state, dict):
        raise InputError(f'{path} is no nanoGPT checkpoint: it holds no "model_args" and "model".')
    for key in SIZES:
        if not isinstance(args.get(key), int) or isinstance(args[key], bool) or args[key] < 1:
            raise InputError(f"{path}: model_args says {key} {args.get(key)!r}, where a number above 0 is right.")
    if args["n_embd"] % args["n_head"]:
        raise InputError(f"{path}: n_embd {args['n_embd']} is not {args['n_head']} heads of one size.")
    named = {str(name).removeprefix("_orig_mod."): tensor for name, tensor in state.items()}
    return args, {name: tensor for name, tensor in named.items() if not name.endswith((".attn.bias", ".masked_bias"))}


def _shapes(args: dict[str, int], bias: bool) -> dict[str, tuple[int, ...]]:
    """Every tensor that a checkpoint of these sizes has, with its shape there."""
    d, vocab = args["n_embd"], args["vocab_size"]
    found = {"transformer.wte.weight": (vocab, d), "transformer.wpe.weight": (args["block_size"], d)}
    block = {
        "ln_1.weight": (d,), "attn.c_attn.weight": (3 * d, d), "attn.c_proj.weight": (d, d), "ln_2.weight": (d,),
        "mlp.c_fc.weight": (4 * d, d), "mlp.c_proj.weight": (d, 4 * d),
    }  # fmt: skip
    for layer in range(args["n_layer"]):
        found |= {f"transformer.h.{layer}.{name}": shape for name, shape in block.items()}
    found["transformer.ln_f.weight"] = (d,)
    if bias:
        found |= {
            f"{name[:-7]}.bias": shape[:1] for name, shape in found.items() if name.split(".")[-2] not in ("wte", "wpe")
        }
    return found | {"lm_head.weight": (vocab, d)}


def _state(path: Path, args: dict[str, int], theirs: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights by GPT-2's names; biases of 0 where the model has none."""
    if args["n_layer"] > len(theirs):  # before names are made for layers that cannot be there
        raise InputError(f"{path}: n_layer {args['n_layer']}, and {len(theirs)} tensors in all.")
    bias = bool(args.get("bias", any(name.endswith(".bias") for name in theirs)))
    theirs = {"lm_head.weight": theirs.get("transformer.wte.weight")} | theirs
    shapes = _shapes(args, bias)
    if other := sorted(set(theirs) ^ set(shapes)):
        where = "is missing" if other[0] in shapes else "is none of nanoGPT's"
        raise InputError(f"{path}: the tensor {other[0]} {where} ({len(other)} such names).")
    for name, shape in shapes.items():
        tensor = theirs[name]
        if not isinstance(tensor, Tensor) or tuple(tensor.shape) != shape or not tensor.is_floating_point():
            raise InputError(f"{path}: {name} is {tuple(getattr(tensor, 'shape', ()))}, where {shape} is right.")
    state = {name: theirs[name].T.contiguous() if name.endswith(_TURNED) else theirs[name] for name in shapes}
    if not bias:
        for name, shape in _shapes(args, True).items():
            state.setdefault(name, torch.zeros(shape, dtype=state["transformer.wte.weight"].dtype))
    return state


def _tokenizer(given: Path, n: int, length: int) -> PreTrainedTokenizerBase:
    """A tokenizer of characters out of a .json, or that of a directory."""
    from transformers import AutoTokenizer

    if given.is_file():
        return _characters(given, n, length)
    try:
        made = AutoTokenizer.from_pretrained(str(given), local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"{given} holds no tokenizer: {str(error).strip().splitlines()[0]}") from None
    if len(made) > n:
        raise InputError(f"{given} has {len(made)} tokens, the model {n}: it is another model's tokenizer.")
    return made


def _characters(path: Path, n: int, length: int) -> PreTrainedTokenizerBase:
    """A token a character. A character that is none of them is an error, as in nanoGPT."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not JSON: {error}. meta.pkl is a pickle: write its stoi as .json.") from None
    if isinstance(found, dict) and isinstance(found.get("stoi"), dict):
        found = found["stoi"]
    ids = {character: at for at, character in enumerate(found)} if isinstance(found, list) else found
    if not isinstance(ids, dict) or not all(isinstance(c, str) and len(c) == 1 for c in ids):
        raise InputError(f"{path}: give a list of single characters, or character -> id.")
    if sorted(map(str, ids.values())) != sorted(map(str, range(len(ids)))) or not 0 < len(ids) <= n:
        raise InputError(
            f"{path}: {len(ids)} characters with ids that are not 0 to {len(ids) - 1}, each once, below {n}."
        )
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token=""))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, model_max_length=length, clean_up_tokenization_spaces=False
    )
