"""Edits of a run by name, for what looks at a run that is not the model's own: lenses, heads, generation.

    L3H5=0               the head writes nothing
    L2.mlp*0.5           the MLP writes half of what it did
    L0E1=0               the expert writes nothing; =0.3 gives it the weight .3 for every token, chosen or not
    demo/417=8           the latent of the dictionary `demo` is held at 8; what the dictionary does not explain stays
    joy@3.resid_post+4   4 units further along the direction `joy`, taken at length 1
    joy@3.resid_post=0   projected out

An edit acts on each position by itself, so it is the same on a whole text and on a token that is added to one.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from interp.causal.interventions import Part, latents_of, named, of_expert
from interp.decoder.hooks import Edit
from interp.decoder.model import Model
from interp.decoder.sites import components
from interp.errors import InputError, UnknownSite, nearest

_NUMBER = r"(\d+\.?\d*(?:e[+-]?\d+)?|\.\d+)"
_SPEC = re.compile(rf"(?P<component>.+?)(?:(?P<operator>[=*])(?P<number>[+-]?{_NUMBER})|(?P<added>[+-]{_NUMBER}))")

OPERATORS: dict[str, Callable[[Tensor, float], Tensor]] = {
    "=": torch.full_like,
    "*": lambda old, number: old * number,
    "+": lambda old, number: old + number,
}


@dataclass(frozen=True)
class Spec:
    """`component`, an operator ("=", "*", "+") and its number."""

    component: str
    operator: str
    number: float

    @classmethod
    def of(cls, text: str) -> Spec:
        """`Spec.of("joy@3.resid_post-4")` is `Spec("joy@3.resid_post", "+", -4.0)`. InputError for another form."""
        match = _SPEC.fullmatch(text.strip())
        if match is None or not math.isfinite(float(match["number"] or match["added"])):
            raise InputError(f'"{text}" is no edit: write L3H5=0, L2.mlp*0.5, demo/417=8 or joy@3.resid_post+4.')
        number = float(match["number"] or match["added"])
        return cls(match["component"].strip(), match["operator"] or "+", number)


def split(specs: str | Sequence[str]) -> list[Spec]:
    """Several edits: a list, or one string with commas."""
    return [Spec.of(text) for given in ([specs] if isinstance(specs, str) else specs) for text in given.split(",")]


def owners(specs: str | Sequence[str]) -> tuple[list[str], list[str]]:
    """Names of the dictionaries and of the directions that the edits speak of."""
    components = [spec.component for spec in split(specs)]
    directions = {name.partition("@")[0] for name in components if "@" in name}
    latents = {piece.rpartition("/")[0] for name in components if "@" not in name for piece in name.split("+")}
    return sorted(latents - {""}), sorted(directions)


def parse(
    model: Model,
    specs: str | Sequence[str],
    *,
    dictionaries: Mapping[str, Any] | None = None,
    directions: Mapping[str, Tensor] | None = None,
) -> dict[str, Edit]:
    """Hook point -> edit, as `interp.edited`, `interp.generate` and the lenses take them; those of one place are made
    in the order given. A component is one of `interp.decoder.sites.components`: also a group (`L3H5+L4H1=0`) or a set
    (`L3.heads=0`), which are edited together.

    UnknownComponent, UnknownSite, and InputError for what cannot be added to.
    """
    writes: dict[str, list[tuple[Part, Spec]]] = {}
    sites = latents_of(dictionaries or {})
    for spec in split(specs):
        targets = components(
            spec.component, **model.counts, dictionaries=sites, directions=directions or {},
        )  # fmt: skip
        for component in (member for target in targets for member in target.members):
            if component.site not in model.sites:
                raise UnknownSite(
                    f'"{model.name}" has no {component.site} for "{component.name}". '
                    f"Nearest: {nearest(component.site, model.sites)}."
                )
            if spec.operator == "+" and component.kind not in ("latent", "direction", "neuron"):
                raise InputError(f'"{spec.component}" is no number to add {spec.number:g} to: use =0 or *0.5.')
            is_expert = component.kind == "expert"
            part = of_expert(component, "zero") if is_expert else named(component, dictionaries or {}, directions or {})
            writes.setdefault(part.site, []).append((part, spec))
    return {site: edit_of(parts) for site, parts in writes.items()}


def edit_of(writes: Sequence[tuple[Part, Spec]]) -> Edit:
    def edit(value: Tensor) -> Tensor:
        changed = value.clone()
        for part, spec in writes:
            part.write(changed, OPERATORS[spec.operator](part.pick(part.source(changed)), spec.number))
        return changed

    return edit
