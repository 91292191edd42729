"""A clean pass, kept so that a changed one can start where the change is.

A block is called again with the arguments that the model itself called it with, but for the hidden state: so any
decoder whose blocks stand one after the other can be resumed, whatever its positions, masks and keys are. Several
changed copies of the prompts are stacked along the batch, copy by copy: `[stack * prompt, pos, d_model]`.

In a causal model the positions before the first changed one stay as they are: they are not computed again, only their
clean keys and values are put in front. Of the last block only the position that is read is needed. And where a head, an
attention layer, a neuron or an MLP is changed, what stands before it in its block is as it was.

`short_cuts` tries both on two prompts first; what does not give the logits of the model itself is not used.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.decoder.checking import TOLERANCE
from interp.decoder.hooks import Edit, called, captured, edited
from interp.decoder.model import Model
from interp.decoder.sites import layer_of, layer_site, short
from interp.errors import UnknownSite


class _Cache:
    """Stands where a block expects its cache of keys and values: `update` is called with them, [prompt head pos
    d_head]."""

    def __init__(self, update: Callable[[Tensor, Tensor, int], tuple[Tensor, Tensor]]):
        self._update = update

    def update(self, keys: Tensor, values: Tensor, layer: int, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        return self._update(keys, values, layer)

    def get_seq_length(self, *args: Any) -> int:
        return 0


class _HaveKeys(Exception):
    """Raised out of a block once its keys and values are known."""


@dataclass(frozen=True)
class ShortCuts:
    """What a model allows: starting at a layer, leaving the positions before the change alone, starting within a block
    at some kinds of site. `why` says why not."""

    resumes: bool
    skips: bool
    why: str = ""
    halfway: frozenset[str] = frozenset()


class CleanPass:
    """Some prompts through a model, once. `final` is what comes out of the last block, [prompt pos d_model]."""

    def __init__(self, model: Model, tokens: Int[Tensor, "prompt pos"], cuts: ShortCuts = ShortCuts(True, True)):
        self.model, self.tokens = model, tokens.to(model.device)
        self.n_prompts, self.length = tokens.shape
        self.keys: dict[int, tuple[Tensor, Tensor]] = {}
        with torch.no_grad():
            self.blocks = list(model.plain_blocks or model.bridge.blocks)
            with called(model, self.blocks, _Cache(self._keep)) as self.calls:
                if model.plain is None:
                    model(tokens)
                else:
                    model.plain.base_model(self.tokens)
            self.resumes = cuts.resumes and len(self.calls) == model.n_layers
            self.skips = cuts.skips and self.resumes and len(self.keys) == model.n_layers and self.length > 1
            self.halfway = cuts.halfway
            self._inside: dict[str, Tensor] = {}
            self.final = self.resume({}, 1)[0]

    def _keep(self, keys: Tensor, values: Tensor, layer: int) -> tuple[Tensor, Tensor]:
        self.keys[layer] = keys, values
        return keys, values

    def start(self, sites: Iterable[str], first: int) -> int:
        """The position from which edits of `sites` see activations, if `first` is the first one that they change."""
        return first if self.skips and all(layer_of(site) >= 0 for site in sites) else 0

    def resume(
        self, edits: Mapping[str, Edit], stack: int, *, first: int = 0, read: int | None = None
    ) -> Float[Tensor, "stack prompt pos d_model"]:
        """What comes out of the last block, with `edits` on `stack` copies of the prompts.

        An edit gets the activation of `[stack * prompt]` copies from the position `first` on (one that `start` gave);
        what stands before must be as it was. With `read`, only that position comes back where that is cheaper, else all
        from `first` on. Where edits are of the last layer norm (`touches_norm`), it has been applied.
        """
        model, bridge = self.model, self.model.bridge
        read = None if touches_norm(edits) else read
        here = self._starts_halfway(edits)
        if here is not None:
            edits = dict(edits)
            inner = self._entered(here, edits.pop(here), stack, first, read)
        layers = {layer_of(site) for site in edits}
        with torch.no_grad(), edited(model, edits):
            if not self.resumes:
                hidden, start = self._whole(stack), model.n_layers
            elif -1 in layers:
                hidden, start = bridge(self.tokens.repeat(stack, 1), stop_at_layer=0)[:, first:], 0
            elif here is not None:
                hidden, start = inner
            else:
                start = min(layers, default=model.n_layers - 1)
                hidden = self._hidden(start)[:, first:].repeat(stack, 1, 1)
            for layer in range(start, model.n_layers):
                last = layer == model.n_layers - 1 and layer not in layers
                if last and read is not None and self.skips and read >= first:
                    hidden = self._read_only(layer, hidden, stack, first, read)
                else:
                    hidden = self._block(layer, hidden, stack, first, bridge.blocks if layer in layers else None)
            hidden = bridge.ln_final(hidden) if touches_norm(edits) else hidden
        return hidden.unflatten(0, (stack, self.n_prompts))

    @torch.no_grad()
    def relay(
        self, entering: Sequence[tuple[int, Edit, int]], *, first: int = 0, read: int | None = None
    ) -> Float[Tensor, "stack prompt pos d_model"]:
        """What comes out of the last block, of copies that are each changed between blocks and nowhere else.

        `entering`: before which block (`entered_before`), the edit, and how many copies it is of, in the order of the
        blocks. Copies join where they are changed, so that one pass serves changes at any layer.
        """
        n_layers, hidden = self.model.n_layers, None
        with self.model.lock:
            for layer in range(entering[0][0], n_layers + 1):
                for _, edit, n in (one for one in entering if one[0] == layer):
                    new = edit(self._hidden(layer)[:, first:].repeat(n, 1, 1))
                    if hidden is not None and hidden.shape[1] < new.shape[1]:
                        new = new[:, read - first : read - first + 1]
                    hidden = new if hidden is None else torch.cat([hidden, new])
                if layer == n_layers:
                    break
                stack = len(hidden) // self.n_prompts
                if layer == n_layers - 1 and read is not None and self.skips and read >= first:
                    hidden = self._read_only(layer, hidden, stack, first, read)
                else:
                    hidden = self._block(layer, hidden, stack, first)
        return hidden.unflatten(0, (-1, self.n_prompts))

    def _starts_halfway(self, edits: Mapping[str, Edit]) -> str | None:
        """The one site that is changed in the first block touched, if its change can be put in without calling the
        block."""
        if not edits or not self.resumes:
            return None
        start = min(map(layer_of, edits))
        sites = [site for site in edits if layer_of(site) == start]
        return sites[0] if len(sites) == 1 and _kind(sites[0]) in self.halfway | _BETWEEN else None

    @torch.no_grad()
    def _entered(self, site: str, edit: Edit, stack: int, first: int, read: int | None) -> tuple[Tensor, int]:
        """The changed residual stream before a block, and which block that is. Between blocks it is changed as it
        stands."""
        start = entered_before(site)
        if start is None:
            return self._from(site, edit, stack, first, read), layer_of(site) + 1
        return edit(self._hidden(start)[:, first:].repeat(stack, 1, 1)), start

    @torch.no_grad()
    def _from(self, site: str, edit: Edit, stack: int, first: int, read: int | None) -> Tensor:
        """What comes out of a block in which `site` alone is changed: residual stream + attention + MLP, from there
        on."""
        layer, kind = layer_of(site), _kind(site)
        block, middle = self.model.bridge.blocks[layer], layer_site(layer, "resid_mid")
        if site not in self._inside:  # of one layer at a time
            sites = [site] + [middle] * (kind in ("post", "mlp_out"))
            with captured(self.model, sites) as self._inside:
                self._block(layer, self._hidden(layer), 1, blocks=self.model.bridge.blocks)
        value = edit(self._inside[site][:, first:].repeat(stack, *[1] * (self._inside[site].ndim - 1)))
        before = self._hidden(layer) if kind in ("z", "attn_out") else self._inside[middle]
        before = before[:, first:].repeat(stack, 1, 1)
        if layer == self.model.n_layers - 1 and read is not None and read >= first:
            value, before = (x[:, read - first : read - first + 1] for x in (value, before))
        if kind in ("z", "post"):
            value = (block.attn.o if kind == "z" else block.mlp.out).original_component(value.flatten(2))
        hidden = before + value
        if kind in ("z", "attn_out") and self.model.has_mlp:
            plain = self.blocks[layer] if self.model.plain is not None else block.original_component
            added = plain.get_submodule(block.mlp.name)(plain.get_submodule(block.ln2.name)(hidden))
            hidden = hidden + (added[0] if isinstance(added, tuple) else added)
        return hidden

    def _hidden(self, layer: int) -> Tensor:
        """The clean residual stream before a block, or after the last one."""
        if layer >= self.model.n_layers:
            return self.final
        args, kwargs = self.calls[layer]
        return args[0] if args else kwargs["hidden_states"]

    def _whole(self, stack: int) -> Tensor:
        """The slow way: a whole pass of the model, its last hidden state caught on the way to the head."""
        with called(self.model, [self.model.bridge.ln_final], None) as calls:
            self.model(self.tokens.repeat(stack, 1))
        return calls[0][0][0]

    def _block(self, layer: int, hidden: Tensor, stack: int, first: int = 0, blocks: Any = None) -> Tensor:
        """One block on changed hidden states [stack * prompt, pos >= first, d_model]."""

        def extend(keys: Tensor, values: Tensor, layer: int) -> tuple[Tensor, Tensor]:
            clean = (kept[:, :, :first].repeat(stack, 1, 1, 1) for kept in self.keys[layer])
            return tuple(torch.cat(pair, 2) for pair in zip(clean, (keys, values), strict=True))

        cache = _Cache(extend if first else lambda keys, values, layer: (keys, values))
        return self._call(blocks or self.blocks, layer, hidden, stack, slice(first, self.length), cache)

    def _read_only(self, layer: int, hidden: Tensor, stack: int, first: int, read: int) -> Tensor:
        """The last block at the position read alone: all positions give keys and values, one asks.

        The block is called twice: until its keys and values are there, and then for the one position with them.
        """
        found: list[Tensor] = []

        def stop(keys: Tensor, values: Tensor, layer: int) -> tuple[Tensor, Tensor]:
            for kept, new in zip(self.keys[layer], (keys, values), strict=True):
                found.append(torch.cat([kept[:, :, :first].repeat(stack, 1, 1, 1), new], 2) if first else new)
            raise _HaveKeys

        try:
            self._call(self.blocks, layer, hidden, stack, slice(first, self.length), _Cache(stop))
        except _HaveKeys:
            pass
        at = slice(read, read + 1)
        here = hidden[:, read - first : read - first + 1]
        return self._call(self.blocks, layer, here, stack, at, _Cache(lambda keys, values, layer: tuple(found)))

    def _call(self, blocks: Any, layer: int, hidden: Tensor, stack: int, at: slice, cache: _Cache) -> Tensor:
        """The block as it was called in the clean pass, on other hidden states at the positions `at`."""

        def again(value: Any) -> Any:
            if isinstance(value, Tensor):
                return self._of(value, stack, at)
            if isinstance(value, tuple):
                return tuple(map(again, value))
            return cache if isinstance(value, _Cache) else value

        args, kwargs = self.calls[layer]
        if args:
            out = blocks[layer](hidden, *map(again, args[1:]), **{key: again(value) for key, value in kwargs.items()})
        else:
            out = blocks[layer](**{key: hidden if key == "hidden_states" else again(v) for key, v in kwargs.items()})
        return out[0] if isinstance(out, tuple) else out

    def _of(self, value: Tensor, stack: int, at: slice) -> Tensor:
        """A tensor argument (positions, rotations, a mask) for `stack` copies of the prompts and the positions `at`.

        Masks are [prompt or 1, head or 1, query, key], ALiBi's biases [prompt * head, 1, key], the others
        [prompt or 1, pos, ...] or [pos].
        """
        if value.ndim == 3 and value.shape[:2] == (self.n_prompts * self.model.n_heads, 1):
            return value.repeat(stack, 1, 1)
        if value.ndim == 4 and value.shape[-2] == self.length:
            value = value[:, :, at]
        elif value.ndim in (2, 3) and value.shape[1] == self.length:
            value = value[:, at]
        elif value.ndim == 1 and value.shape[0] == self.length:
            value = value[at]
        if value.ndim > 1 and value.shape[0] == self.n_prompts > 1:
            value = value.repeat(stack, *[1] * (value.ndim - 1))
        return value


_BETWEEN = frozenset({"resid_pre", "resid_post"})


def _kind(site: str) -> str:
    return short(site).partition(".")[2]


def entered_before(site: str) -> int | None:
    """The block before which a site between blocks stands; None for any other site."""
    return layer_of(site) + (_kind(site) == "resid_post") if _kind(site) in _BETWEEN else None


def touches_norm(sites: Iterable[str]) -> bool:
    """Whether one of the sites is in the last layer norm."""
    return any(site.startswith("ln_final.") for site in sites)


_CALLED_ANOTHER_WAY = (RuntimeError, TypeError, ValueError, AttributeError, IndexError, KeyError, UnknownSite)
"""What blocks raise that cannot be called as here."""


_ALLOWED: WeakKeyDictionary[Model, dict[int, ShortCuts]] = WeakKeyDictionary()
"""What was found for a model and a number of positions."""


def short_cuts(model: Model, tokens: Int[Tensor, "prompt pos"]) -> ShortCuts:
    """Which short cuts give what the model itself gives, tried once for a length on two of the prompts with nothing
    changed."""
    known = _ALLOWED.setdefault(model, {})
    if tokens.shape[1] not in known:
        known[tokens.shape[1]] = _try_short_cuts(model, tokens[:2])
    return known[tokens.shape[1]]


def _try_short_cuts(model: Model, tokens: Int[Tensor, "prompt pos"]) -> ShortCuts:
    half, last = tokens.shape[1] // 2, tokens.shape[1] - 1
    with torch.no_grad():
        wanted = model(tokens)

    between = {layer_site(0, "resid_pre"): torch.clone}
    inside = {layer_site(layer, "z"): torch.clone for layer in range(model.n_layers)}

    def same(first: int, read: int | None) -> bool:
        """Whether all blocks called again on two copies, from the position `first`, give the model's logits: those of
        the plain model, and those with hooks, which may keep other keys and values (latent attention)."""
        clean = CleanPass(model, tokens, ShortCuts(True, first > 0))
        if not clean.resumes or clean.skips != (first > 0):
            return False
        with torch.no_grad():
            found = [model.head(clean.resume(edits, 2, first=first, read=read)) for edits in (between, inside)]
        last = slice(read - first, read - first + 1) if read is not None else slice(None)
        return all(
            _close(logits if logits.shape[2] == 1 else logits[:, :, last], wanted[:, first:][:, last])
            for logits in found
        )

    if not tried(lambda: same(0, None)):
        return ShortCuts(False, False, "its blocks called again give something else: passes are whole ones")
    clean = CleanPass(model, tokens, ShortCuts(True, False))

    def enters(kind: str) -> bool:
        """Whether the first and the last block entered at this kind of site come out as they do whole."""
        layers = (0, model.n_layers - 1)
        found = [clean._from(layer_site(layer, kind), torch.clone, 2, 0, None) for layer in layers]
        return all(
            _close(hidden.unflatten(0, (2, len(tokens))), clean._hidden(layer + 1))
            for layer, hidden in zip(layers, found, strict=True)
        )

    halfway = frozenset(kind for kind in ("z", "attn_out", "post", "mlp_out") if tried(lambda kind=kind: enters(kind)))
    if half and not tried(lambda: same(half, None) and same(half, last)):
        return ShortCuts(True, False, "its keys and values cannot be kept: all positions are computed again", halfway)
    return ShortCuts(True, True, "", halfway)


def tried(check: Callable[[], bool]) -> bool:
    """What `check` says; False for a model whose blocks cannot be called so."""
    try:
        return check()
    except _CALLED_ANOTHER_WAY:
        return False


def _close(found: Float[Tensor, copy * rest], wanted: Float[Tensor, " *rest"]) -> bool:
    limit = TOLERANCE[wanted.dtype] * wanted.abs().max().clamp(min=1)
    return found.shape[1:] == wanted.shape and bool((found - wanted).abs().max() <= limit)
