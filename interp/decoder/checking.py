"""Do the hooks tell the truth? The model with hooks against the plain one, and what its names promise, measured.

Differences are relative to the largest number of what is compared (or 1): a change of order in a sum of n numbers moves
it by about n times the dtype's step, whatever its scale. `interp.causal.conformance` adds what is built on hooks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from einops import einsum, repeat
from jaxtyping import Int
from torch import Tensor
from torch.nn import Module

from interp.decoder import parts
from interp.decoder.hooks import captured, edited, watch
from interp.decoder.model import Model
from interp.decoder.sites import LAYER_SITES, MODEL_SITES, READ_ONLY, axes, layer_site, short
from interp.decoder.twins import plain_logits
from interp.errors import InputError, NotFinite

TOLERANCE = {torch.float64: 1e-9, torch.float32: 2e-5, torch.float16: 2e-2, torch.bfloat16: 1e-1}
"""Largest relative difference that is rounding. float32: some hundred steps of 6e-8, for sums of hundreds of numbers
through tens of layers. float16 and bfloat16: as many steps of 5e-4 and 4e-3 do not fit, but errors of layers are
independent and add up as their root: some twenty steps."""

CAUSAL = 1e-4
"""Smallest relative change of a logit by which an edit is one. The same pass twice is the same to the bit: what moves
is the edit's."""

GROSS = 1e-3
"""Relative difference that is no rounding of float32, however many layers add up; what is read wrongly is off by far
more."""


@dataclass(frozen=True)
class Line:
    """One check. `verdict`: "ok"; "refused", where the workbench does not offer it, `why` says the reason; "WRONG"."""

    what: str
    verdict: str
    measured: float = float("nan")
    limit: float = float("nan")
    bound: str = "at most"
    why: str = ""


def same(what: str, measured: float, limit: float, why: str = "") -> Line:
    return Line(what, "ok" if measured <= limit else "WRONG", measured, limit, "at most", why)


def moved(what: str, measured: float, limit: float, why: str = "") -> Line:
    return Line(what, "ok" if measured >= limit else "WRONG", measured, limit, "at least", why)


def refused(what: str, why: str) -> Line:
    return Line(what, "refused", why=why)


def apart(found: Tensor, wanted: Tensor) -> float:
    """The largest difference, relative to the largest number wanted, or to 1; infinite for another shape."""
    if found.shape != wanted.shape:
        return float("inf")
    found, wanted = found.double(), wanted.double()
    return ((found - wanted).abs().max() / wanted.abs().max().clamp(min=1)).nan_to_num(torch.inf).item()


@dataclass(frozen=True)
class Given:
    """The model and random tokens that every check is made with."""

    model: Model
    tokens: Int[Tensor, "prompt pos"]
    seed: int = 0

    @classmethod
    def of(cls, model: Model, *, length: int = 12, seed: int = 0) -> Given:
        draw = torch.Generator().manual_seed(seed)
        return cls(model, torch.randint(0, model.d_vocab, (2, min(length, model.n_ctx)), generator=draw), seed)

    @property
    def limit(self) -> float:
        return TOLERANCE[self.model.dtype]

    @cached_property
    def clean(self) -> Tensor:
        return self.model(self.tokens)

    @cached_property
    def seen(self) -> dict[str, Tensor]:
        with captured(self.model, self.model.sites) as cache:
            self.model(self.tokens)
        return cache

    def logits(self, what: str, *pairs: tuple[Tensor, Tensor]) -> Line:
        """Whether logits found are those wanted. Of experts in half precision the median over positions: rounding sends
        a token that stands between two experts to the other one, and its logits with it."""
        half = self.model.dtype in (torch.float16, torch.bfloat16)
        if not (half and self.model.has_mlp and self.model.d_mlp is None):
            return same(what, max(apart(*pair) for pair in pairs), self.limit)
        found = [((a - b).float().abs().amax(-1) / b.float().abs().max()).median().item() for a, b in pairs]
        return same(what, max(found), self.limit, "median over positions: rounding can choose another expert")

    def at(self, layer: int, kind: str) -> Tensor:
        return self.seen[layer_site(layer, kind)]

    def noise(self, site: str, n: int = 1) -> Tensor:
        """Noise as large as what is at a site, always the same."""
        value = self.seen[site]
        draw = torch.randn(n * len(value), *value.shape[1:], generator=torch.Generator().manual_seed(self.seed + 1))
        return (draw * value.detach().float().cpu().std().clamp(min=1e-3)).to(value)

    def layers(self, kind: str) -> list[int]:
        return [layer for layer in range(self.model.n_layers) if layer_site(layer, kind) in self.model.sites]


def check(model: Model, *, length: int = 12, seed: int = 0) -> list[Line]:
    """The model's hooks, on two prompts of `length` random tokens: take more than its sliding window, if it has one."""
    given = Given.of(model, length=length, seed=seed)
    return run(given, [_forward, _fused, _reading, _put_back, _blind, _sites, _pattern, _stream, _carried, _heads, _cut,
                       _head, _recorded, _cached, _gone])  # fmt: skip


def broken(model: Model) -> list[Line]:
    """What is plainly not as its name says: the checks that a few passes on a few tokens decide, with the WRONG ones
    that are further off than rounding takes a long model (`GROSS`)."""
    given = Given.of(model, length=6)
    found = run(given, [_fused, _put_back, _blind, _shapes, _pattern, _stream, _carried, _heads, _head, _between])
    return [line for line in found if line.verdict == "WRONG" and not line.measured <= GROSS]


@torch.no_grad()
def run(given: Given, checks: list[Callable[[Given], Iterator[Line]]]) -> list[Line]:
    """The lines of all checks. One that raises is WRONG, whatever it raises: a new family may fail anywhere."""
    found: list[Line] = []
    for one in checks:
        try:
            found += one(given)
        except (InputError, NotFinite) as error:
            found.append(refused(_name(one), str(error)))
        except Exception as error:
            reason = (str(error).strip().splitlines() or [""])[0]
            found.append(Line(_name(one), "WRONG", why=f"{type(error).__name__}: {reason}"))
    return found


def _name(check: Callable) -> str:
    return (check.__doc__ or check.__name__).rstrip(".")


def _forward(given: Given) -> Iterator[Line]:
    """logits are those of plain Hugging Face."""
    plain = plain_logits(given.model, given.tokens)
    if plain is None:
        yield refused(_name(_forward), "it was not built by transformers: there is no plain model")
    else:
        yield given.logits(_name(_forward), (given.clean, plain))


def _fused(given: Given) -> Iterator[Line]:
    """passes without hooks give the same logits."""
    model, tokens = given.model, given.tokens
    if model.plain is None:
        yield refused(_name(_fused), "it was not built by transformers: every pass is one with hooks")
        return
    with model.fused_attention():
        fused = model(tokens)
    yield given.logits(_name(_fused), (fused, given.clean), (model.plain_pass(tokens), given.clean))


def _reading(given: Given) -> Iterator[Line]:
    """reading every hook point changes nothing."""
    with captured(given.model, given.model.sites):
        yield same(_name(_reading), apart(given.model(given.tokens), given.clean), 0.0)


def _put_back(given: Given) -> Iterator[Line]:
    """what hooks and norms' scales hold, put in again, changes nothing."""
    model = given.model
    with edited(model, dict.fromkeys([*model.sites, *model.scales], torch.clone)):
        yield given.logits(_name(_put_back), (model(given.tokens), given.clean))


def _blind(given: Given) -> Iterator[Line]:
    """no position sees later tokens."""
    other = given.tokens.clone()
    other[:, -1] = (other[:, -1] + 1) % given.model.d_vocab
    yield same(_name(_blind), apart(given.model(other)[:, :-1], given.clean[:, :-1]), given.limit)


def _sites(given: Given) -> Iterator[Line]:
    """hook points."""
    model, sizes = given.model, sizes_of(given.model, given.tokens)
    dense = not model.mixtures
    kinds = [
        kind for kind, (_, shape) in LAYER_SITES.items() if kind not in READ_ONLY and not (dense and "expert" in shape)
    ]
    by_kind: dict[str, list[str]] = {kind: [layer_site(layer, kind) for layer in given.layers(kind)] for kind in kinds}
    by_kind |= {kind: [site] if site in model.sites else [] for kind, site in MODEL_SITES.items()}
    for kind, sites in by_kind.items():
        if not sites:
            yield refused(f"hook point {kind}", model.refused.get(kind, "the bridge has none"))
            continue
        said = f"[{axes(sites[0])}] = {[sizes.get(axis) for axis in axes(sites[0]).split()]}"
        if found := _misshapen(given, sites):
            yield Line(f"hook point {kind}", "WRONG", why=f"{said}, found {found}")
            continue
        if kind in LAYER_SITES and len(sites) < model.n_layers:
            said += f", in {len(sites)} of {model.n_layers} layers"
        least = float("inf")
        for site in sites:
            with edited(model, {site: lambda value, site=site: value + given.noise(site)}):
                least = min(least, apart(model(given.tokens), given.clean))
        yield moved(f"hook point {kind}", least, CAUSAL, said)


def _shapes(given: Given) -> Iterator[Line]:
    """hook points have the shapes said."""
    for site in given.model.sites:
        if found := _misshapen(given, [site]):
            yield Line(f"hook point {short(site)}", "WRONG", why=f"it should be [{axes(site)}] and is {found}")


def _misshapen(given: Given, sites: list[str]) -> str:
    """The shapes of hook points of a kind, if they are not the one they should have."""
    sizes = sizes_of(given.model, given.tokens)
    wanted = tuple(sizes.get(axis) for axis in axes(sites[0]).split())
    shapes = dict.fromkeys(tuple(given.seen[site].shape) for site in sites)
    return "" if list(shapes) == [wanted] else ", ".join(str(list(shape)) for shape in shapes)


def sizes_of(model: Model, tokens: Int[Tensor, "prompt pos"]) -> Mapping[str, int | None]:
    """How long each axis of a hook point is (`sites.axes`)."""
    return {
        "prompt": tokens.shape[0], "pos": tokens.shape[1], "query": tokens.shape[1], "key": tokens.shape[1],
        "head": model.n_heads, "kv_head": model.n_kv_heads, "d_head": model.d_head, "d_model": model.d_model,
        "d_mlp": model.d_mlp, "expert": next(iter(model.mixtures.counts.values()), None),
    }  # fmt: skip


def _pattern(given: Given) -> Iterator[Line]:
    """pattern: rows sum to 1, none looks ahead, and it times v is z."""
    model, what = given.model, _name(_pattern)
    if not given.layers("pattern"):
        yield refused(what, model.refused.get("pattern", "the bridge has none"))
        return
    worst, sinks = 0.0, False
    for layer in given.layers("pattern"):
        pattern = given.at(layer, "pattern").double()
        sinks |= getattr(model.bridge.blocks[layer].attn.original_component, "sinks", None) is not None
        ahead = pattern.triu(1).abs().max().item()
        total = pattern.sum(-1)
        worst = max(worst, ahead, (total - 1).clamp(min=0 if sinks else -torch.inf).abs().max().item())
        if layer in given.layers("v"):
            v = repeat(given.at(layer, "v").double(), "prompt pos kv d -> prompt pos (kv group) d",
                       group=model.n_heads // model.n_kv_heads)  # fmt: skip
            z = einsum(pattern, v, "prompt head query key, prompt key head d -> prompt query head d")
            worst = max(worst, apart(given.at(layer, "z"), z))
    yield same(what, worst, given.limit, "attention sinks: rows sum to less" if sinks else "")


def _stream(given: Given) -> Iterator[Line]:
    """the residual stream is the sum of what is written."""
    model, worst = given.model, 0.0
    for layer in range(model.n_layers):
        total = given.at(layer, "resid_pre") + given.at(layer, "attn_out")
        if layer in given.layers("resid_mid"):
            worst = max(worst, apart(given.at(layer, "resid_mid"), total))
        total = total + given.at(layer, "mlp_out") if model.has_mlp else total
        worst = max(worst, apart(given.at(layer, "resid_post"), total))
        if layer:
            worst = max(worst, apart(given.at(layer, "resid_pre"), given.at(layer - 1, "resid_post")))
    yield same(_name(_stream), worst, given.limit)


def _carried(given: Given) -> Iterator[Line]:
    """what is put into the residual stream stays in it."""
    model, worst = given.model, 0.0
    kinds = ("attn_out", "resid_mid", "mlp_out", "resid_post")
    sites = [
        layer_site(layer, kind) for layer in range(model.n_layers) for kind in kinds if layer in given.layers(kind)
    ]
    added = {site: given.noise(site) for site in sites}
    new = {site: (lambda value, site=site: value + added[site]) for site in sites}
    with edited(model, new), captured(model, model.sites) as seen:  # in this order: what is seen has been edited
        model(given.tokens)
    for layer in range(model.n_layers):
        total = seen[layer_site(layer, "resid_pre")] + seen[layer_site(layer, "attn_out")]
        for kind in kinds[1:]:
            site = layer_site(layer, kind)
            if kind == "mlp_out":
                total = total + seen[site] if site in seen else total
            elif site in seen:
                total = total + added[site]
                worst = max(worst, apart(seen[site], total))
        if layer + 1 < model.n_layers:
            worst = max(worst, apart(seen[layer_site(layer + 1, "resid_pre")], total))
    yield same(_name(_carried), worst, given.limit)


def _heads(given: Given) -> Iterator[Line]:
    """heads' outputs and b_O sum to attn_out."""
    model, worst = given.model, 0.0
    if why := parts.between_heads_and_stream(model):
        yield refused(_name(_heads), why)
        return
    for layer in range(model.n_layers):
        total = parts.head_outputs(model, layer, given.at(layer, "z")).sum(2) + parts.head_bias(model, layer)
        worst = max(worst, apart(total, given.at(layer, "attn_out")))
    yield same(_name(_heads), worst, given.limit)


def _cut(given: Given) -> Iterator[Line]:
    """a head zeroed is its numbers zeroed in plain Hugging Face."""
    model, pairs = given.model, []
    if model.plain is None:
        yield refused(_name(_cut), "it was not built by transformers: there is no plain model")
        return
    for layer in sorted({0, model.n_layers // 2, model.n_layers - 1}):
        for head in (0, model.n_heads - 1):
            mine = slice(head * model.d_head, (head + 1) * model.d_head)

            def zero(module: Module, args: tuple[Tensor], mine: slice = mine) -> tuple[Tensor]:
                z = args[0].clone()
                z[..., mine] = 0
                return (z,)

            def ours(z: Tensor, head: int = head) -> Tensor:
                z = z.clone()
                z[:, :, head] = 0
                return z

            with model.lock:
                handle = parts.plain_output(model, layer).register_forward_pre_hook(zero)
                try:
                    wanted = model.plain_pass(given.tokens)
                finally:
                    handle.remove()
            with edited(model, {layer_site(layer, "z"): ours}):
                pairs.append((model(given.tokens), wanted))
    yield given.logits(_name(_cut), *pairs)


def _head(given: Given) -> Iterator[Line]:
    """logits follow from the last residual stream."""
    model = given.model
    last = given.at(model.n_layers - 1, "resid_post")
    few = given.tokens[:, -3:].to(model.device)[:, None].expand(-1, last.shape[1], -1)
    some = model.head(last, few)
    found = max(apart(model.head(last), given.clean), apart(some, given.clean.gather(-1, few)))
    yield same(_name(_head), found, given.limit)


def _recorded(given: Given) -> Iterator[Line]:
    """what is recorded in fast passes is what hooks see."""
    apart_by_site = [_watched(given, [site]) for site in given.model.sites]
    yield same(_name(_recorded), max(apart_by_site), given.limit)


def _between(given: Given) -> Iterator[Line]:
    """what is recorded around blocks is what hooks see."""
    model = given.model
    sites = [layer_site(layer, kind) for layer in range(model.n_layers) for kind in ("resid_pre", "resid_post")]
    final = [[site] for site in MODEL_SITES.values() if site in model.sites]  # a norm may be used twice (NanoChat)
    yield same(_name(_between), max(_watched(given, some) for some in [sites, *final]), given.limit)


def _watched(given: Given, sites: list[str]) -> float:
    """How far what one fast pass shows at some sites is from what hooks see there."""
    kept: dict[str, Tensor] = {}
    looks = {site: lambda value, site=site: kept.update({site: value.clone()}) for site in sites}
    watch(given.model, given.tokens, looks)
    return max(apart(kept[site], given.seen[site]) for site in sites)


def _cached(given: Given) -> Iterator[Line]:
    """with and without a cache of keys and values the logits are the same."""
    model, half = given.model, given.tokens.shape[1] // 2
    if model.plain is None:
        yield refused(_name(_cached), "it keeps no keys and values: generation computes every position again")
        return
    site, worst = layer_site(0, "z"), 0.0
    for edit, plain in (({}, True), ({}, False), ({site: lambda z: z * 0.5}, False)):
        with edited(model, edit):
            wanted, cache, start = model(given.tokens), None, 0
            for end in range(half, given.tokens.shape[1] + 1):
                found, cache = model.extend(given.tokens[:, start:end], cache, plain=plain)
                worst, start = max(worst, apart(found, wanted[:, end - 1])), end
    yield same(_name(_cached), worst, given.limit)


def _gone(given: Given) -> Iterator[Line]:
    """after all this no hook is left, and the logits are as before."""
    hooks = (hook for site in given.model.sites for hook in given.model.hook_point(site).fwd_hooks)
    left = sum(not hook.is_permanent for hook in hooks)  # the bridge has some of its own
    yield same(_name(_gone), left + apart(given.model(given.tokens), given.clean), 0.0)
