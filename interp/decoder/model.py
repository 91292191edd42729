"""A model that can be looked at: what every other room of the house is given.

`interp.decoder.loading` makes one.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.decoder import families, placing
from interp.decoder.adapters import Live
from interp.decoder.experts import Mixtures
from interp.decoder.sites import LAYER_SITES, MODEL_SITES, expand, layer_site
from interp.errors import InputError


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
        unread: str = "",
        quantisation: str | None = None,
    ):
        self.name, self.bridge, self.tokenizer, self.plain = name, bridge, tokenizer, plain
        self.fingerprint, self.revision, self.processing = fingerprint, revision, "none"
        self.unread = unread
        """Why weights cannot be read as numbers (`interp.decoder.placing`); empty where they can."""
        self.quantisation = quantisation
        self.lock = threading.RLock()
        self.live: Live | None = None
        self.adapter: dict[str, Any] | None = None
        """What results say of a LoRA that is merged in, or live: path, base, fingerprint, scale."""
        cfg = bridge.cfg
        self.n_layers, self.n_heads = int(cfg.n_layers), int(cfg.n_heads)
        self.n_kv_heads = int(cfg.n_key_value_heads or cfg.n_heads)
        self.d_model, self.d_head, self.d_mlp = (
            int(cfg.d_model),
            families.head_width(bridge),
            families.mlp_width(bridge),
        )
        self.d_vocab, self.n_ctx = int(cfg.d_vocab), int(cfg.n_ctx)
        self.has_mlp, self.mixtures = not cfg.attn_only, Mixtures(bridge)
        self.refused = families.not_offered(bridge) | self.mixtures.not_offered
        """Kind of hook point -> why it is not offered."""
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
        inside attention is called, `attn_out` included. A model that was not built by transformers, or to which the
        kernel is not open (soft caps, ALiBi), stays as it is."""
        with self.lock, ExitStack() as stack:
            config = getattr(getattr(self.bridge, "original_model", None), "config", None)
            before = getattr(config, "_attn_implementation", None)
            fuses = before == "eager" and self.plain is not None and self.plain._supports_sdpa
            for block in self.bridge.blocks if fuses else []:
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

    @contextmanager
    def adapted(self, scale: bool | int | float = True) -> Iterator[None]:
        """Inside the block the live adapter counts `scale` times: False (0) is the base, True (1) as trained.
        InputError for a model that has none."""
        if self.live is None:
            raise InputError(f'"{self.name}" has no live adapter: load_model(BASE, adapter=DIR, merged=False).')
        with self.live.at(self, float(scale)):
            yield

    @property
    def device(self) -> torch.device:
        """Where tokens go in; of a model on several, that of its first layer."""
        device = next(self.bridge.parameters()).device
        return placing.entrance(self.plain) if device.type == "meta" else device

    @property
    def where(self) -> str:
        """What results say of where it ran: its device; of a model that is spread, each module's."""
        placed = {} if self.plain is None else placing.device_map(self.plain)
        spread = "; ".join(f"{name} on {place}" for name, place in placed.items())
        return f"auto: {spread}" if len(set(placed.values())) > 1 or "disk" in placed.values() else str(self.device)

    @property
    def dtype(self) -> torch.dtype:
        return next(self.bridge.parameters()).dtype

    def hook_point(self, name: str) -> Any:
        return self.mixtures.points.get(name) or self.bridge.hook_dict[name]

    @property
    def counts(self) -> dict[str, Any]:
        """How many components of each kind there are, as `interp.decoder.sites.components` takes them."""
        return {"n_layers": self.n_layers, "n_heads": self.n_heads, "d_mlp": self.d_mlp, "has_mlp": self.has_mlp,
                "experts": self.mixtures.counts}  # fmt: skip

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
            elif self.unread:
                logits = unembed(hidden).gather(-1, tokens)
            else:
                logits = (unembed.W_U.T[tokens] @ hidden[..., None])[..., 0] + unembed.b_U[tokens]
        return self.after_unembedding(logits)

    @property
    def logit_cap(self) -> float:
        """What Gemma's logits are bent to stay below; 0 where they are not."""
        return max(0.0, float(getattr(self.bridge.cfg, "output_logits_soft_cap", 0) or 0))

    def after_unembedding(self, logits: Float[Tensor, "*batch logit"]) -> Float[Tensor, "*batch logit"]:
        """What the model makes of the unembedding's numbers: Cohere and Granite multiply them, Gemma caps them."""
        return self.bridge.adapter.apply_output_logits_transform(logits)

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
        known = {name for name in self.bridge.hook_dict if "hook_expert" not in name}  # those are of tokens in a row
        known |= self.mixtures.points.keys() - set(self.mixtures.read_only)
        blocks = [
            layer_site(layer, short)
            for layer in range(self.n_layers)
            for short in LAYER_SITES
            if short not in self.refused and layer_site(layer, short) in known
        ]
        before, after = (
            [MODEL_SITES[kind] for kind in ("embed", "pos_embed") if kind not in self.refused],
            [MODEL_SITES["final"]],
        )
        return [n for n in before if n in known] + blocks + [n for n in after if n in known]

    def expand(self, patterns: str | Sequence[str], *, read_only: bool = False) -> list[str]:
        """The hook points that `patterns` select (`sites.expand`), those that can only be read among them if asked."""
        known = self.sites + (self.mixtures.read_only if read_only else [])
        return expand(patterns, known, model=f'"{self.name}"', refused=self.refused)

    def provenance(self) -> dict[str, Any]:
        """What a result says of its model: name, revision, fingerprint, dtype, processing; of an adapter and of
        quantised weights what they are."""
        return {
            "name": self.name, "revision": self.revision, "fingerprint": self.fingerprint,
            "dtype": str(self.dtype).removeprefix("torch."), "processing": self.processing,
        } | {
            key: said for key, said in (("adapter", self.adapter), ("quantisation", self.quantisation)) if said
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
