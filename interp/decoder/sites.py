"""The names of places in a model: hook points, components and positions.

A hook point is named as TransformerLens names it, `blocks.3.hook_resid_post`; the short form is `3.resid_post`, and
`*` or `2-5` in place of the layer selects several. A component is what an ablation speaks about: `L3H5`, `L3.attn`,
`L3.mlp`. No torch here: pages that only browse import this.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from interp.errors import UnknownComponent, UnknownSite, nearest

LAYER_SITES = {
    "resid_pre": ("blocks.{}.hook_resid_pre", "d_model"),
    "q": ("blocks.{}.attn.hook_q", "head d_head"),
    "k": ("blocks.{}.attn.hook_k", "kv_head d_head"),
    "v": ("blocks.{}.attn.hook_v", "kv_head d_head"),
    "pattern": ("blocks.{}.attn.hook_pattern", "head query key"),
    "z": ("blocks.{}.attn.hook_z", "head d_head"),
    "attn_out": ("blocks.{}.hook_attn_out", "d_model"),
    "resid_mid": ("blocks.{}.hook_resid_mid", "d_model"),
    "pre": ("blocks.{}.mlp.hook_pre", "d_mlp"),
    "post": ("blocks.{}.mlp.hook_post", "d_mlp"),
    "mlp_out": ("blocks.{}.hook_mlp_out", "d_model"),
    "resid_post": ("blocks.{}.hook_resid_post", "d_model"),
}
"""Short name -> hook point, and the axes after `prompt pos` (a pattern has `prompt head query key`)."""

MODEL_SITES = {"embed": "hook_embed", "pos_embed": "hook_pos_embed", "final": "ln_final.hook_normalized"}
"""Hook points outside the blocks."""

_FULL = {full.format(r"(\d+)").replace(".", r"\."): short for short, (full, _) in LAYER_SITES.items()}


def layer_site(layer: int, short_name: str) -> str:
    """`layer_site(3, "z")` is `blocks.3.attn.hook_z`."""
    return LAYER_SITES[short_name][0].format(layer)


def short(name: str) -> str:
    """`blocks.3.attn.hook_z` -> `3.z`; a name with no short form as it is."""
    for pattern, short_name in _FULL.items():
        if match := re.fullmatch(pattern, name):
            return f"{match[1]}.{short_name}"
    return name


def full(name: str) -> str:
    """`3.z` -> `blocks.3.attn.hook_z`; any other name as it is."""
    layer, _, short_name = name.partition(".")
    return layer_site(int(layer), short_name) if layer.isdigit() and short_name in LAYER_SITES else name


def axes(name: str) -> str:
    """The axes of a hook point: `prompt pos head d_head`."""
    kind = short(name).partition(".")[2]
    if kind == "pattern":
        return "prompt head query key"
    return "prompt pos " + (LAYER_SITES[kind][1] if kind in LAYER_SITES else "d_model")


def expand(patterns: str | Sequence[str], known: Iterable[str], *, model: str = "the model") -> list[str]:
    """Hook points that `patterns` select among `known` ones, in the model's order, as full names.

    `expand("2-5.z", model.sites)`. UnknownSite where a pattern selects nothing.
    """
    known = list(known)
    selected: set[str] = set()
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        layers, _, kind = pattern.removeprefix("blocks.").partition(".")
        if match := re.fullmatch(r"(\d+)-(\d+)|\*", layers):
            among = [name for name in known if short(name) != name or name.startswith("blocks.")]
            low, high = (int(match[1]), int(match[2])) if match[1] else (0, 10**9)
            hits = {
                name
                for name in among
                if low <= layer_of(name) <= high and kind in (short(name).partition(".")[2], name.split(".", 2)[2])
            }
        else:
            hits = {full(pattern)} & set(known)
        if not hits:
            options = [short(name) for name in known] + known
            raise UnknownSite(f'no hook point "{pattern}" in {model}. Nearest: {nearest(pattern, options)}.')
        selected |= hits
    return [name for name in known if name in selected]


def layer_of(name: str) -> int:
    """Layer of a hook point; -1 before the blocks, a large number after them."""
    match = re.match(r"blocks\.(\d+)\.", full(name))
    return int(match[1]) if match else (10**6 if "final" in name else -1)


@dataclass(frozen=True)
class Component:
    """A part whose output can be replaced: `L3H5` (a head), `L3.attn`, `L3.mlp`."""

    kind: str
    layer: int
    index: int = -1

    @property
    def name(self) -> str:
        return f"L{self.layer}H{self.index}" if self.kind == "head" else f"L{self.layer}.{self.kind}"

    @property
    def site(self) -> str:
        """The hook point at which the component writes: `z` of a head, `attn_out`, `mlp_out`."""
        return layer_site(self.layer, {"head": "z", "attn": "attn_out", "mlp": "mlp_out"}[self.kind])


def components(names: str | Sequence[str], *, n_layers: int, n_heads: int, has_mlp: bool = True) -> list[Component]:
    """Components that `names` select: "heads", "mlps", "attn", or `L3H5`, `L3.mlp`, `L3.attn`, alone or in a list (a
    string may list them with commas). UnknownComponent, with the nearest ones, for any other name."""
    heads = [Component("head", layer, head) for layer in range(n_layers) for head in range(n_heads)]
    mlps = [Component("mlp", layer) for layer in range(n_layers)] if has_mlp else []
    attns = [Component("attn", layer) for layer in range(n_layers)]
    groups = {"heads": heads, "mlps": mlps, "attn": attns}
    single = {component.name: component for component in heads + mlps + attns}
    selected: dict[str, Component] = {}
    for name in names.split(",") if isinstance(names, str) else names:
        name = name.strip()
        if not groups.get(name) and name not in single:
            raise UnknownComponent(
                f'no component "{name}" in a model of {n_layers} layers and {n_heads} heads. '
                f"Nearest: {nearest(name, [*(g for g in groups if groups[g]), *single])}."
            )
        selected |= {c.name: c for c in groups.get(name) or [single[name]]}
    return list(selected.values())
