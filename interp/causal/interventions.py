"""What is put in place of an activation: which part of it, by which method, at which positions.

A *part* is what an intervention may touch of the activation at a hook point: all of it, one head or neuron, its
component along a direction, one latent of a dictionary. A *method* says what is put there. The rest of the activation
stays.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from interp.decoder.sites import Component, layer_site, short
from interp.errors import InputError, UnknownName, nearest

METHODS = {
    "zero": "a' = 0. Also removes what the part adds whatever the prompt is, so it can hurt where nothing was read "
    "from it; along a direction it is projecting out",
    "mean": "a'[n, t] = mean over the reference prompts of a[., t]. Keeps the constant; needs prompts of one form, for "
    "position t must mean the same in each. Of an expert: the mean over all reference tokens sent to it, put where a "
    "token is sent to it",
    "mean-all": "a'[n, t] = mean over reference prompts and positions. For text and prompts of several forms; blurs "
    "what only one position does",
    "resample": "a'[n, t] = a[n, t] on the corrupted prompt. Stays among values the model knows; removes only what "
    "differs between the pair",
    "shuffle": "a'[n, t] = a[m, t] on another prompt m of the same length. Removes what tells prompts apart; noisier "
    "than mean: one draw, fixed by the seed",
    "forbid": "of an expert: its router logit is -inf, so its tokens go to the next best, weighted as the model weighs "
    "those it chooses. What the others can do in its place, where zero leaves a gap",
    "force": "of an expert: where it is not chosen it takes the place and the weight of the one with the least weight",
}
"""What `ablate` puts in place of a part a [prompt, pos, ...], and when it misleads. Each also with "-frozen": the
scales of all layer norms and all attention patterns from there on are held at their clean values, which leaves the
direct effects and those through MLPs; "-frozen-ln" and "-frozen-pattern" hold one of the two. Li & Janson 2024,
arXiv:2409.09951, compare zero, mean and resample; Wang et al. 2022, arXiv:2211.00593, section 2.1, argue for the
mean."""

OF_EXPERTS = frozenset({"forbid", "force"})
"""Methods that send tokens to other experts, and say nothing of other components."""

FROZEN = {"-frozen": frozenset({"ln", "pattern"}), "-frozen-ln": frozenset({"ln"}),
          "-frozen-pattern": frozenset({"pattern"})}  # fmt: skip


def split_method(name: str) -> tuple[str, frozenset[str]]:
    """`split_method("mean-frozen-ln")` is `("mean", {"ln"})`. UnknownName for what there is not."""
    for suffix, held in FROZEN.items():
        if name.endswith(suffix) and name.removesuffix(suffix) in METHODS:
            return name.removesuffix(suffix), held
    if name not in METHODS:
        options = [*METHODS, *(method + suffix for method in METHODS for suffix in FROZEN)]
        raise UnknownName(f'no method "{name}". Nearest: {nearest(name, options)}.')
    return name, frozenset()


@runtime_checkable
class Part(Protocol):
    """`pick(source(x))` is the part of an activation x [prompt pos ...], as [prompt pos *part]; `write` puts it back
    into x, in place. A mean over prompts is taken of `source`, which parts of one site share (`shared` says which)."""

    site: str

    @property
    def shared(self) -> Any: ...

    def source(self, x: Tensor) -> Tensor: ...

    def pick(self, source: Tensor) -> Tensor: ...

    def write(self, x: Tensor, new: Tensor) -> None: ...


_OF_NUMBERS = ("hook_post", "hook_pre", "hook_router_logits", "hook_expert_weights")
"""Sites whose indexed axis is the last."""


@dataclass(frozen=True)
class Whole:
    """All of an activation, or one head, neuron or expert of it: `index` on the axis after the positions."""

    site: str
    index: int | None = None

    @property
    def shared(self) -> Any:
        return self.site

    def source(self, x: Float[Tensor, "... pos *rest"]) -> Float[Tensor, "... pos *rest"]:
        return x

    def pick(self, source: Tensor) -> Tensor:
        return source if self.index is None else source.select(source.ndim - self._after, self.index)

    @property
    def _after(self) -> int:
        """Axes from the indexed one on: [head, d_head], [expert, d_model] or [neuron]."""
        return 1 if self.site.endswith(_OF_NUMBERS) else 2

    def write(self, x: Tensor, new: Tensor) -> None:
        self.pick(x).copy_(new)


@dataclass(frozen=True, eq=False)
class Along:
    """The component of an activation along a direction: c = x . v, with v of length 1; x' = x + (c' - c) v."""

    site: str
    direction: Float[Tensor, " d_model"]

    @property
    def shared(self) -> Any:
        return self.site

    def source(self, x: Tensor) -> Tensor:
        return x

    def pick(self, source: Tensor) -> Tensor:
        return source @ self._unit(source)

    def _unit(self, like: Tensor) -> Tensor:
        return (self.direction.double() / self.direction.double().norm()).to(like)

    def write(self, x: Tensor, new: Tensor) -> None:
        x += (new - self.pick(x))[..., None] * self._unit(x)


@dataclass(frozen=True, eq=False)
class Latent:
    """One latent of a dictionary: x' = x + decode(z') - decode(z), where z = encode(x) and z' is z with one latent
    replaced; what the dictionary does not explain stays."""

    site: str
    dictionary: Any
    index: int

    @property
    def shared(self) -> Any:
        return id(self.dictionary)

    def source(self, x: Float[Tensor, "prompt pos *rest"]) -> Float[Tensor, "prompt pos d_sae"]:
        weight = next(self.dictionary.parameters())
        return self.dictionary.encode(x.flatten(2).to(weight)).detach()

    def pick(self, source: Tensor) -> Tensor:
        return source[..., self.index]

    def write(self, x: Tensor, new: Tensor) -> None:
        latents = self.source(x)
        changed = latents.clone()
        changed[..., self.index] = new.to(latents)
        moved = self.dictionary.decode(changed) - self.dictionary.decode(latents)
        x += moved.detach().reshape(x.shape).to(x)


@dataclass(frozen=True)
class Routed:
    """What an expert writes (`expert_out`), at the tokens that are sent to it; at others it stays 0."""

    site: str
    index: int

    @property
    def shared(self) -> Any:
        return self.site

    def source(self, x: Float[Tensor, "... expert d_model"]) -> Float[Tensor, "... expert d_model"]:
        return x

    def pick(self, source: Tensor) -> Tensor:
        return source[..., self.index, :]

    def write(self, x: Tensor, new: Tensor) -> None:
        written = self.pick(x)
        sent = (written != 0).any(-1, keepdim=True)
        if bool((sent & new.isnan()).any()):
            raise InputError(
                f"no reference token is sent to expert {self.index} of {short(self.site)}: it has no mean."
            )
        written.copy_(torch.where(sent, new, written))


@dataclass(frozen=True)
class Chosen:
    """Whether a token is sent to an expert, 1 or 0, told by the `expert_weights`. Where 1 is written and it is not, it
    takes the weight of the expert with the least, which has none then."""

    site: str
    index: int

    @property
    def shared(self) -> Any:
        return self.site

    def source(self, x: Float[Tensor, "... expert"]) -> Float[Tensor, "... expert"]:
        return x

    def pick(self, source: Tensor) -> Tensor:
        return (source[..., self.index] != 0).to(source)

    def write(self, x: Tensor, new: Tensor) -> None:
        sent = new.bool() & ~self.pick(x).bool()
        least = torch.where(x != 0, x, torch.inf).min(-1, keepdim=True)
        moved = x.scatter(-1, least.indices, 0).index_copy(
            -1, torch.tensor([self.index], device=x.device), least.values
        )
        x.copy_(torch.where(sent[..., None], moved, x))


def of_expert(expert: Component, method: str) -> Part:
    """What a method changes of a mixture so that one expert is put aside, replaced or called for."""

    def at(site: str) -> str:
        return layer_site(expert.layer, site)

    if method == "forbid":
        return Whole(at("router_logits"), expert.index)
    if method == "force":
        return Chosen(at("expert_weights"), expert.index)
    if method == "zero":
        return Whole(at("expert_weights"), expert.index)
    return (Routed if method in ("mean", "mean-all") else Whole)(at("expert_out"), expert.index)


def latents_of(dictionaries: Mapping[str, Any]) -> dict[str, tuple[str, int]]:
    """The site and the number of latents of each dictionary, as `interp.decoder.sites.components` takes them.
    InputError for one that writes elsewhere than it reads (a transcoder): its latents are no part of what it reads."""
    for name, dictionary in dictionaries.items():
        if dictionary.is_transcoder:
            raise InputError(
                f'the dictionary "{name}" reads {dictionary.sites[0]} and writes {dictionary.out_sites[0]}: its '
                "latents are changed by splicing it into the model (sae.spliced), not by name."
            )
    return {name: (dictionary.site, dictionary.d_sae) for name, dictionary in dictionaries.items()}


def named(component: Component, dictionaries: Mapping[str, Any], directions: Mapping[str, Tensor]) -> Part:
    """The part that a component is; a latent of one of `dictionaries`, a direction of `directions`."""
    if component.kind == "latent":
        return Latent(component.site, dictionaries[component.of], component.index)
    if component.kind == "direction":
        return Along(component.site, directions[component.of])
    return Whole(component.site, component.index if component.kind in ("head", "neuron", "expert") else None)


@dataclass(frozen=True, eq=False)
class Write:
    """`new` put into a part at the positions `where` (None: all). `new` is [pos *part] or one number, the same for
    every prompt; None: the part's own value on the prompt's donor."""

    part: Part
    new: Tensor | None
    where: Bool[Tensor, "prompt pos"] | None = None

    def apply(self, x: Tensor, prompts: Tensor, first: int, donor: Tensor | None) -> None:
        """Change x [prompt, pos from `first` on, ...] of the `prompts` in place; `donor` is the activation of x's
        shape."""
        old = self.part.pick(self.part.source(x))
        positions = slice(first, first + x.shape[1])
        if self.new is None:
            new = self.part.pick(self.part.source(donor))
        else:
            new = (self.new[positions] if self.new.ndim else self.new).to(old).expand_as(old)
        if self.where is not None:
            mask = self.where[prompts][:, positions].to(x.device)
            new = torch.where(mask.reshape(*mask.shape, *[1] * (old.ndim - 2)), new, old)
        self.part.write(x, new)


@dataclass(frozen=True, eq=False)
class Intervention:
    """Writes made together in one pass. `frozen`: "ln" and "pattern", held at their clean values from there on."""

    writes: tuple[Write, ...]
    frozen: frozenset[str] = frozenset()

    @property
    def sites(self) -> set[str]:
        return {write.part.site for write in self.writes}

    def at(self, where: Bool[Tensor, "prompt pos"]) -> Intervention:
        """The same at the positions `where` alone."""
        return replace(self, writes=tuple(replace(write, where=where) for write in self.writes))
