"""The names of places in a model: hook points, components and positions.

A hook point is named as TransformerLens names it, `blocks.3.hook_resid_post`; the short form is `3.resid_post`, and
`*` or `2-5` in place of the layer selects several. A component is what an ablation speaks about: `L3H5`, `L3.attn`,
`L3.mlp`, ... (`Component`). No torch here: pages that only browse import this.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

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
    "router_logits": ("blocks.{}.mlp.hook_router_logits", "expert"),
    "router_probs": ("blocks.{}.mlp.hook_router_probs", "expert"),
    "expert_weights": ("blocks.{}.mlp.hook_expert_weights", "expert"),
    "expert_indices": ("blocks.{}.mlp.hook_expert_indices", "chosen"),
    "expert_out": ("blocks.{}.mlp.hook_expert_out", "expert d_model"),
    "mlp_out": ("blocks.{}.hook_mlp_out", "d_model"),
    "resid_post": ("blocks.{}.hook_resid_post", "d_model"),
}
"""Short name -> hook point, and the axes after `prompt pos` (a pattern has `prompt head query key`)."""

READ_ONLY = {"router_probs": "router_logits", "expert_indices": "expert_weights"}
"""Sites whose edit would change nothing, and what is edited in their place."""

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


def expand(
    patterns: str | Sequence[str], known: Iterable[str], *, model: str = "the model",
    refused: Mapping[str, str] = MappingProxyType({}),
) -> list[str]:  # fmt: skip
    """Hook points that `patterns` select among `known` ones, in the model's order, as full names.

    `expand("2-5.z", model.sites)`. UnknownSite where a pattern selects nothing; of a kind that is `refused`, why.
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
        if not hits and kind in refused:
            raise UnknownSite(f'no hook point "{pattern}" in {model}: {refused[kind]}.')
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
    """A part of an activation that can be replaced: a head `L3H5`, an attention layer `L3.attn`, an MLP `L3.mlp`, a
    neuron `L3N120`, an expert `L3E2`, the residual stream `L3.resid_pre`, an embedding `embed`, a latent of a
    dictionary `demo/417`, a direction in the residual stream `refusal@3.resid_post`. `of` names the dictionary or the
    direction."""

    kind: str
    layer: int
    index: int = -1
    of: str = ""
    at: str = ""
    """The hook point of a latent or a direction."""

    @property
    def name(self) -> str:
        if self.kind in _LETTER:
            return f"L{self.layer}{_LETTER[self.kind]}{self.index}"
        if self.kind == "latent":
            return f"{self.of}/{self.index}"
        if self.kind == "direction":
            return f"{self.of}@{short(self.at)}"
        return self.kind if self.kind in MODEL_SITES else f"L{self.layer}.{self.kind}"

    @property
    def site(self) -> str:
        """The hook point at which the component writes: `z` of a head, `post` of a neuron, `expert_out`, `attn_out`,
        `mlp_out`."""
        if self.at or self.kind in MODEL_SITES:
            return self.at or MODEL_SITES[self.kind]
        return layer_site(self.layer, _WRITES.get(self.kind, self.kind))

    @property
    def members(self) -> tuple[Component, ...]:
        return (self,)


_LETTER = {"head": "H", "neuron": "N", "expert": "E"}
_WRITES = {"head": "z", "neuron": "post", "expert": "expert_out", "attn": "attn_out", "mlp": "mlp_out"}


@dataclass(frozen=True)
class Group:
    """Components replaced together: `L3H5+L4H1`; or all of a set but some, `heads-L3H5-L4H1`."""

    name: str
    members: tuple[Component, ...]
    kind: str = "group"
    layer: int = -1
    index: int = -1


def _sets(
    n_layers: int,
    n_heads: int,
    d_mlp: int | None,
    has_mlp: bool,
    experts: Mapping[int, int],
    dictionaries: Mapping[str, tuple[str, int]],
) -> dict[str, list[Component]]:
    """Every set of components by its name."""
    sets: dict[str, list[Component]] = {
        "heads": [Component("head", layer, head) for layer in range(n_layers) for head in range(n_heads)],
        "mlps": [Component("mlp", layer) for layer in range(n_layers) if has_mlp],
        "attn": [Component("attn", layer) for layer in range(n_layers)],
        "neurons": [Component("neuron", layer, n) for layer in range(n_layers) for n in range(d_mlp or 0)],
        "experts": [Component("expert", layer, expert) for layer, n in experts.items() for expert in range(n)],
    }
    for kind in ("resid_pre", "resid_mid", "resid_post"):
        sets[kind] = [Component(kind, layer) for layer in range(n_layers) if has_mlp or kind != "resid_mid"]
    for kind in ("heads", "neurons", "experts"):
        sets |= {f"L{layer}.{kind}": [c for c in sets[kind] if c.layer == layer] for layer in range(n_layers)}
    for name, (site, d_sae) in dictionaries.items():
        sets[f"{name}/*"] = [Component("latent", layer_of(site), n, name, site) for n in range(d_sae)]
    return sets


def components(
    names: str | Sequence[str | Sequence[str]],
    *,
    n_layers: int,
    n_heads: int,
    d_mlp: int | None = 0,
    has_mlp: bool = True,
    experts: Mapping[int, int] | None = None,
    dictionaries: Mapping[str, tuple[str, int]] | None = None,
    directions: Iterable[str] = (),
) -> list[Component | Group]:
    """Components that `names` select, each once, in the order given. A string may list several with commas.

    Sets: "heads", "mlps", "attn", "neurons", "experts", "resid_pre", "resid_mid", "resid_post", of one layer
    "L3.heads", "L3.neurons", "L3.experts", all latents "demo/*". Together: "L3H5+L4H1" or a list within the list. All
    but some, together: "heads-L3H5-L4H1", "heads+mlps-L3H5". `experts`: layer -> how many it has; `dictionaries`:
    name -> (hook point, latents). UnknownComponent, with the nearest names, for any other.
    """
    sets = _sets(n_layers, n_heads, d_mlp if has_mlp else None, has_mlp, experts or {}, dictionaries or {})
    single = {c.name: c for members in sets.values() for c in members} | {"embed": Component("embed", -1)}

    def one(name: str) -> list[Component]:
        direction, _, site = name.partition("@")
        if site and direction in directions and short(full(site)).partition(".")[2] in LAYER_SITES:
            return [Component("direction", layer_of(site), -1, direction, full(site))]
        found = sets.get(name) or [single[name] for _ in range(name in single)]
        if not found:
            options = [
                *(s for s in sets if sets[s]),
                *(n for n, c in single.items() if c.kind not in ("neuron", "latent")),
            ]
            options += [f"{d}@{n_layers - 1}.resid_post" for d in directions]
            options += [f"{d}/{d_sae - 1}" for d, (_, d_sae) in (dictionaries or {}).items()]
            options += [sets["neurons"][-1].name] if sets["neurons"] else []
            raise UnknownComponent(
                f'no component "{name}" in a model of {n_layers} layers and {n_heads} heads. '
                f"Nearest: {nearest(name, options)}."
            )
        return found

    def together(name: str) -> list[Component | Group]:
        of_a_direction = name.partition("@")[0] in directions  # which may have a hyphen in its name
        if of_a_direction or name in single or name in sets or not re.search(r"[+-]", name):
            return list(one(name))
        pieces = re.findall(r"(^|[+-])([^+-]+)", name)
        kept = dict.fromkeys(c for sign, piece in pieces if sign != "-" for c in one(piece.strip()))
        out = {c for sign, piece in pieces if sign == "-" for c in one(piece.strip())}
        if not set(kept) - out:
            raise UnknownComponent(f'the group "{name}" has no component left: take less out of it.')
        return [Group(name, tuple(c for c in kept if c not in out))]

    selected: dict[str, Component | Group] = {}
    for name in names.split(",") if isinstance(names, str) else names:
        name = name if isinstance(name, str) else "+".join(name)
        selected |= {c.name: c for part in name.split(",") for c in together(part.strip())}
    return list(selected.values())
