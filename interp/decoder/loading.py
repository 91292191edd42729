"""Models in: the bundled one, a local directory (Hugging Face or TransformerLens form), a name on the hub.

The one file that imports transformer_lens. Weights are used as they were trained: no folding of layer norms and no
centring (`processing` is "none" in every result).
"""

from __future__ import annotations

import copy
import hashlib
import json
import logging
import threading
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from safetensors.torch import load_file
from torch import Tensor

from interp.decoder.sites import LAYER_SITES, MODEL_SITES, layer_site
from interp.errors import InputError, UnknownModel, nearest

BUNDLED = Path(__file__).parent.parent / "bundled" / "model"
_DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16, "float64": torch.float64}


class Model:
    """A decoder whose activations can be read and replaced (`interp.decoder.hooks`).

    `model(tokens)` gives logits. One `lock` a model: `captured` and `edited` hold it, so that a clean pass in one
    thread never runs under another's edits.
    """

    def __init__(
        self,
        name: str,
        bridge: Any,
        tokenizer: Any,
        *,
        fingerprint: str,
        revision: str | None = None,
        plain: torch.nn.Module | None = None,
    ):
        self.name, self.bridge, self.tokenizer, self.plain = name, bridge, tokenizer, plain
        self.fingerprint, self.revision, self.processing = fingerprint, revision, "none"
        self.lock = threading.RLock()
        cfg = bridge.cfg
        self.n_layers, self.n_heads = int(cfg.n_layers), int(cfg.n_heads)
        self.n_kv_heads = int(cfg.n_key_value_heads or cfg.n_heads)
        self.d_model, self.d_head, self.d_mlp = int(cfg.d_model), int(cfg.d_head), _mlp_width(bridge)
        self.d_vocab, self.n_ctx = int(cfg.d_vocab), int(cfg.n_ctx)
        self.has_mlp = not cfg.attn_only
        self.sites = self._sites()

    def __repr__(self) -> str:
        return f"Model({self.name!r}, {self.n_layers} layers, {self.n_heads} heads, d_model {self.d_model})"

    def __call__(self, tokens: Int[Tensor, "prompt pos"]) -> Float[Tensor, "prompt pos d_vocab"]:
        """Logits, in nats up to a constant. No padding mask: pad on the right, where a causal model's earlier positions
        do not see it. InputError for more positions than the model has."""
        if tokens.shape[1] > self.n_ctx:
            raise InputError(f'{tokens.shape[1]} tokens given: "{self.name}" reads at most {self.n_ctx}.')
        with self.lock:
            return self.bridge(tokens.to(self.device), return_type="logits")

    @contextmanager
    def fused_attention(self) -> Iterator[None]:
        """Inside the block attention is torch's fused kernel (`sdpa`): faster, without a pattern in memory; no hook
        inside attention is called, `attn_out` included. A model that was not built by transformers stays as it is."""
        with self.lock, ExitStack() as stack:
            config = getattr(getattr(self.bridge, "original_model", None), "config", None)
            before = getattr(config, "_attn_implementation", None)
            for block in self.bridge.blocks if before == "eager" else []:
                plain, attention = block.original_component, getattr(block, "attn", None)
                for name, child in list(plain.named_children()):
                    if child is attention and getattr(attention, "original_component", None) is not None:
                        setattr(plain, name, attention.original_component)
                        stack.callback(setattr, plain, name, attention)
                        config._attn_implementation = "sdpa"
            stack.callback(setattr, config, "_attn_implementation", before) if before else None
            yield

    def plain_pass(
        self, tokens: Int[Tensor, "prompt pos"], *, logits: bool = True
    ) -> Float[Tensor, "prompt pos d_vocab"] | None:
        """A forward pass of the plain model, attention fused; with `logits` False the head is left out."""
        with self.lock:
            config = self.plain.config
            before = config._attn_implementation
            config._attn_implementation = "sdpa" if before == "eager" and self.plain._supports_sdpa else before
            try:
                out = (self.plain if logits else self.plain.base_model)(tokens.to(self.device), use_cache=False)
                return out.logits if logits else None
            finally:
                config._attn_implementation = before

    def extend(
        self, tokens: Int[Tensor, "prompt pos"], cache: Any = None, *, plain: bool = False, keep: bool = True
    ) -> tuple[Float[Tensor, "prompt d_vocab"], Any]:
        """Logits after the last of `tokens`, and the keys and values of all, to be given back as `cache` with what
        follows. `plain`: no hook is called. `keep` False: no cache. InputError for a model without one."""
        tokens = tokens.to(self.device)
        with self.lock:
            if not keep:
                return (self.plain_pass(tokens) if plain and self.plain is not None else self(tokens))[:, -1], None
            if self.plain is None:
                raise InputError(f'"{self.name}" keeps no keys and values: generate without the cache.')
            if plain:
                out = self.plain(tokens, past_key_values=cache, use_cache=True)
                return out.logits[:, -1], out.past_key_values
            logits, cache = self.bridge(tokens, return_type="logits_and_cache", past_key_values=cache, use_cache=True)
            return logits[:, -1], cache

    @property
    def device(self) -> torch.device:
        return next(self.bridge.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        return next(self.bridge.parameters()).dtype

    def hook_point(self, name: str) -> Any:
        return self.bridge.hook_dict[name]

    @property
    def plain_blocks(self) -> torch.nn.ModuleList | None:
        """The blocks without hooks, on the same weights; None where there is no plain model."""
        return None if self.plain is None else self.plain.get_submodule(self.bridge.blocks[0].name.rpartition(".")[0])

    def head(
        self,
        hidden: Float[Tensor, "*batch d_model"],
        tokens: Int[Tensor, "*batch few"] | None = None,
        *,
        normalized: bool = False,
    ) -> Float[Tensor, "*batch logit"]:
        """Logits of what comes out of the last block: of every token, or of the few `tokens` named at each place.
        `normalized`: the last layer norm has been applied."""
        with self.lock:  # or the hooks of another thread's pass would be called
            for name in ("ln_final", "project_out")[normalized:]:
                if name in self.bridge._modules:
                    hidden = self.bridge._modules[name](hidden)
            unembed = self.bridge.unembed
            if tokens is None:
                logits = unembed(hidden)
            else:
                logits = (unembed.W_U.T[tokens] @ hidden[..., None])[..., 0] + unembed.b_U[tokens]
        cap = float(getattr(self.bridge.cfg, "output_logits_soft_cap", 0) or 0)
        return cap * torch.tanh(logits / cap) if cap > 0 else logits

    @property
    def scales(self) -> list[str]:
        """Hook points of the layer norms' scales, which can be held but are not offered as sites: [prompt pos 1]."""
        return [name for name in self.bridge.hook_dict if name.endswith(".hook_scale")]

    @property
    def inner(self) -> list[str]:
        """Hook points that are not offered as sites and can yet be read and held by name: `scales`, and what the MLPs
        read, after their layer norm."""
        return self.scales + [name for name in self.bridge.hook_dict if name.endswith(".mlp.hook_in")]

    def _sites(self) -> list[str]:
        """Every hook point offered, in the order of the forward pass; `tests/test_hooks.py` edits each one."""
        known = self.bridge.hook_dict
        absent = () if self.has_mlp else ("pre", "post", "mlp_out", "resid_mid")
        absent += () if self.d_mlp else ("pre", "post")  # of a mixture of experts they would be d_model wide
        absent += () if _pattern_is_causal(self.bridge) else ("pattern",)
        blocks = [
            layer_site(layer, short)
            for layer in range(self.n_layers)
            for short in LAYER_SITES
            if short not in absent and layer_site(layer, short) in known
        ]
        learned = self.bridge.cfg.positional_embedding_type == "standard"
        before, after = [MODEL_SITES["embed"]] + learned * [MODEL_SITES["pos_embed"]], [MODEL_SITES["final"]]
        return [n for n in before if n in known] + blocks + [n for n in after if n in known]

    def provenance(self) -> dict[str, Any]:
        """What a result says of its model: name, revision, fingerprint, dtype, processing."""
        return {
            "name": self.name, "revision": self.revision, "fingerprint": self.fingerprint,
            "dtype": str(self.dtype).removeprefix("torch."), "processing": self.processing,
        }  # fmt: skip

    @property
    def bos(self) -> int | None:
        return None if self.tokenizer is None else self.tokenizer.bos_token_id

    @property
    def tokenizer_hash(self) -> str | None:
        """sha256 over the tokenizer: two that agree in it make the same tokens."""
        if self.tokenizer is None:
            return None
        backend = getattr(self.tokenizer, "backend_tokenizer", None)
        text = backend.to_str() if backend else json.dumps(self.tokenizer.get_vocab(), sort_keys=True)
        return "sha256:" + hashlib.sha256(text.encode()).hexdigest()

    def to_tokens(self, text: str, *, prepend_bos: bool = True) -> list[int]:
        """Token ids of `text`, after BOS where the tokenizer has one."""
        if self.tokenizer is None:
            raise InputError(f'"{self.name}" has no tokenizer: give token ids (clean_tokens) in place of text.')
        ids = self.tokenizer.encode(text, add_special_tokens=False)
        return [self.bos, *ids] if prepend_bos and self.bos is not None else ids

    def token_text(self, ids: Iterable[int]) -> list[str]:
        """One string a token."""
        if self.tokenizer is None:
            return [str(int(i)) for i in ids]
        return [self.tokenizer.decode([int(i)], clean_up_tokenization_spaces=False) for i in ids]


def _mlp_width(bridge: Any) -> int | None:
    """Neurons of an MLP, read from its output weights; None where there is no one such matrix (no MLP, experts)."""
    out = getattr(bridge.blocks[0]._modules.get("mlp"), "out", None)
    weight = getattr(getattr(out, "original_component", None), "weight", None)
    return None if weight is None else weight.numel() // int(bridge.cfg.d_model)


def _pattern_is_causal(bridge: Any) -> bool:
    """Whether `hook_pattern` stands before the values are mixed. Where attention is left whole to Hugging Face (OPT) it
    is shown afterwards, and editing it does nothing."""
    attention = bridge.blocks[0].attn
    inside = getattr(attention.original_component, "accepts_pattern_fn", False)
    return inside or type(attention).__name__ != "AttentionBridge"


def load_model(
    name: str = "bundled", *, device: str | None = None, dtype: str = "float32", revision: str | None = None
) -> Model:
    """A model by name: "bundled", a local directory, or a name on the Hugging Face hub.

    A directory whose config.json says `"format": "transformer_lens"` holds a HookedTransformer's state dict; any other
    a Hugging Face causal language model. UnknownModel where there is none.
    """
    if dtype not in _DTYPES:
        raise InputError(f'unknown dtype "{dtype}". Nearest: {nearest(dtype, _DTYPES)}.')
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f'no device "{device}" here: {str(error).splitlines()[0]} Try --device cpu.') from None
    folder = BUNDLED if name == "bundled" else Path(name)
    config = _read_config(folder) if (folder / "config.json").exists() else None
    if config is None and (folder.exists() or name.startswith((".", "/"))):
        raise UnknownModel(f'no model in "{name}": a model folder has a config.json. {_suggest(name)}')
    if config is not None and config.get("format") == "transformer_lens":
        return _load_transformer_lens(name, folder, config, device, _DTYPES[dtype])
    return _load_hugging_face(name, folder if config is not None else None, device, _DTYPES[dtype], revision)


def _read_config(folder: Path) -> dict[str, Any]:
    try:
        return json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise UnknownModel(f"{folder / 'config.json'} is not JSON: {error}.") from None


def _suggest(name: str) -> str:
    parent = Path(name).parent
    beside = [str(p.parent) for p in parent.glob("*/config.json")] if parent.is_dir() else []
    return f"Nearest: {nearest(name, [*beside, 'bundled', 'gpt2', 'EleutherAI/pythia-160m'])}."


def fingerprint(config: Mapping[str, Any], state: Mapping[str, Tensor]) -> str:
    """sha256 over the config (without paths and versions) and every weight's name, dtype, shape and bytes."""
    volatile = {"_name_or_path", "transformers_version", "dtype", "torch_dtype", "_attn_implementation_autoset"}
    kept = {key: value for key, value in config.items() if key not in volatile}
    digest = hashlib.sha256(json.dumps(kept, sort_keys=True, default=str).encode())
    for name in sorted(state):
        value = state[name].detach().contiguous().cpu()
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return "sha256:" + digest.hexdigest()


def _bridge() -> Any:
    """TransformerBridge, with its import-time chatter kept quiet."""
    logging.getLogger("transformer_lens").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", message="A forward hook edited hook_scale")  # rounding, said once per process
    from transformer_lens.model_bridge import TransformerBridge

    return TransformerBridge


def _load_hugging_face(name: str, folder: Path | None, device: str, dtype: torch.dtype, revision: str | None) -> Model:
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils.logging import disable_progress_bar, enable_progress_bar

    source = str(folder) if folder else name
    if folder is None:
        _check_hub(name, revision)
    if folder and sum(f.stat().st_size for f in folder.glob("*.safetensors")) < 1e9:
        disable_progress_bar()  # loads in under two seconds
    else:
        enable_progress_bar()
    try:
        hf = AutoModelForCausalLM.from_pretrained(
            source, dtype=dtype, attn_implementation="eager", revision=revision, use_safetensors=True
        )
        tokenizer = AutoTokenizer.from_pretrained(source, revision=revision)
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UnknownModel(f'model "{name}" cannot be loaded ({reason}). {_suggest(name)}') from None
    hf.eval()
    digest = fingerprint(hf.config.to_dict(), hf.state_dict())
    commit = getattr(hf.config, "_commit_hash", None)
    hf.config._name_or_path = source
    plain = _plain_twin(hf.to(device))
    bridge = _bridge().boot_transformers(source, hf_model=hf, tokenizer=tokenizer, device=device, dtype=dtype)
    bridge.eval()
    return Model(name, bridge, tokenizer, fingerprint=digest, revision=commit, plain=plain)


def _plain_twin(hf: torch.nn.Module) -> torch.nn.Module:
    """The model again, of the same tensors, before hooks are put into its modules: what nothing reads or changes runs
    here.

    GPT-2's formula for GELU is written in eight steps there; it is taken in one (the same formula, 1e-6 apart).
    """
    shared = {id(tensor): tensor for tensor in (*hf.parameters(), *hf.buffers())}
    twin = copy.deepcopy(hf, shared)
    for parent in list(twin.modules()):
        for name, child in parent.named_children():
            if type(child).__name__ == "NewGELUActivation":
                setattr(parent, name, torch.nn.GELU(approximate="tanh"))
    return twin


def _check_hub(name: str, revision: str | None) -> None:
    """UnknownModel at once where a name is not cached and the hub is out of reach (transformers retries for 30 s)."""
    from urllib.error import HTTPError, URLError
    from urllib.request import urlopen

    from huggingface_hub import constants, try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        if not isinstance(try_to_load_from_cache(name, "config.json", revision=revision), str):
            urlopen(constants.ENDPOINT, timeout=10).close()
    except HTTPError:
        pass  # it answers
    except (HFValidationError, URLError, TimeoutError) as error:
        raise UnknownModel(
            f'no model "{name}": not a local folder, and not to be had from the Hugging Face hub ({error}). '
            f"{_suggest(name)}"
        ) from None


def plain_logits(model: Model, tokens: Int[Tensor, "prompt pos"]) -> Float[Tensor, "prompt pos d_vocab"] | None:
    """Logits of a fresh plain Hugging Face model of the same name, dtype and device; None for TransformerLens."""
    from transformers import AutoModelForCausalLM

    folder = BUNDLED if model.name == "bundled" else Path(model.name)
    if (folder / "config.json").exists() and _read_config(folder).get("format") == "transformer_lens":
        return None
    source = str(folder) if folder.exists() else model.name
    hf = AutoModelForCausalLM.from_pretrained(source, dtype=model.dtype, revision=model.revision, use_safetensors=True)
    return hf.to(model.device).eval()(tokens.to(model.device)).logits


def _load_transformer_lens(name: str, folder: Path, config: dict[str, Any], device: str, dtype: torch.dtype) -> Model:
    bridge_class = _bridge()
    from transformer_lens.config.transformer_bridge_config import TransformerBridgeConfig
    from transformer_lens.utilities.tl_checkpoint_conversion import convert_tl_checkpoint

    weights = folder / "model.safetensors"
    if not weights.exists():
        raise UnknownModel(f"{folder} has a config.json and no model.safetensors.")
    state = load_file(weights)
    try:
        cfg = TransformerBridgeConfig(**{k: v for k, v in config.items() if k != "format"}, device=device, dtype=dtype)
        bridge = bridge_class.boot_native(cfg)
        bridge.load_state_dict(convert_tl_checkpoint(state, cfg), strict=True)
    except (TypeError, ValueError, RuntimeError) as error:
        raise UnknownModel(f"{folder} is not a TransformerLens model: {str(error).splitlines()[0]}.") from None
    torch.nn.Module.to(bridge, device=device, dtype=dtype).eval()  # bridge.to() prints
    return Model(name, bridge, None, fingerprint=fingerprint(config, state))
