"""A dictionary in its model: inside the block a site's activation is what the dictionary makes of it, latents edited.

    with sae.spliced(model, dct, edit=sae.clamp(417, 8.0), keep_error=True):
        logits = model(tokens)

As components of `interp.ablate` (`demo/417`) latents are edited one at a time, with the error kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from interp.decoder.hooks import Edit, edited
from interp.decoder.model import Model
from interp.errors import InputError, WrongModel
from sae.dictionary import Dictionary

LatentEdit = Callable[[Tensor], Tensor]
"""Latents [prompt, pos, d_sae] in, their replacement out; the tensor given must not be changed in place."""


def check_model(dct: Dictionary, model: Model) -> None:
    """WrongModel unless `dct` was trained on `model` (where the dictionary says on which); UnknownSite if the model has
    not every site that it reads and writes."""
    made_on = dct.model.get("fingerprint")
    if made_on is not None and made_on != model.fingerprint:
        raise WrongModel(
            f'the dictionary was trained on "{dct.model.get("name")}" ({made_on[:19]}), not on "{model.name}" '
            f"({model.fingerprint[:19]}): load that model."
        )
    for site in dct.sites + dct.out_sites:
        model.expand(site)


def clamp(latents: int | Sequence[int], value: float) -> LatentEdit:
    """The edit that holds one latent, or each of several, at `value` at every position."""
    chosen = [latents] if isinstance(latents, int) else list(latents)
    return lambda z: z.index_fill(-1, torch.tensor(chosen, device=z.device), value)


def zero(latents: int | Sequence[int]) -> LatentEdit:
    """The edit that turns latents off."""
    return clamp(latents, 0.0)


def scale(latents: int | Sequence[int], factor: float) -> LatentEdit:
    """The edit that multiplies latents by `factor`."""
    chosen = [latents] if isinstance(latents, int) else list(latents)

    def edit(z: Tensor) -> Tensor:
        index = torch.tensor(chosen, device=z.device)
        return z.index_copy(-1, index, z.index_select(-1, index) * factor)

    return edit


@contextmanager
def spliced(
    model: Model,
    dct: Dictionary,
    *,
    edit: LatentEdit | None = None,
    keep_error: bool = False,
    mask: Bool[Tensor, "prompt pos"] | None = None,
    given: Mapping[str, Tensor] | None = None,
) -> Iterator[None]:
    """Every forward pass inside the block has `decode(edit(encode(x)))` in place of y at `dct.out_sites`.

    y is x itself but in a transcoder. With `keep_error` only what `edit` changes is added to y, so that no edit
    changes nothing, to the bit. Only positions where `mask` is True are replaced. `given` are the activations of a
    clean pass on the same tokens (`captured`) by full name: x and y are then taken from there. A crosscoder needs it,
    since it reads sites that come after the first one it writes; its sites become what the clean pass had, plus what
    `edit` changes. WrongModel and UnknownSite as `check_model`, InputError where `given` is needed or lacks a site.
    """
    check_model(dct, model)
    needed = dct.sites + (dct.out_sites if keep_error else ())
    if given is None and max(map(model.sites.index, dct.sites)) > min(map(model.sites.index, dct.out_sites)):
        raise InputError(f"{dct.sites[-1]} comes after {dct.out_sites[0]}: pass given=, a clean pass's activations.")
    if given is not None and (missing := [site for site in needed if site not in given]):
        raise InputError(f"given= holds no {missing[0]}: capture {', '.join(dict.fromkeys(needed))}.")
    seen: dict[str, Tensor] = {}

    def keep(site: str, value: Tensor) -> Tensor:
        seen[site] = value
        return value

    def replace(site: str, value: Tensor) -> Tensor:
        if given is None and site in dct.sites:
            seen[site] = value
        new = _output(dct, seen if given is None else given, edit, keep_error)
        new = new.unflatten(-1, (len(dct.out_sites), -1))[..., dct.out_sites.index(site), :]
        new = new.reshape(value.shape).to(value)
        if keep_error:
            new = new + (value if given is None else given[site].to(value))
        return new if mask is None else torch.where(mask.reshape(*mask.shape, *[1] * (value.ndim - 2)), new, value)

    only_read = () if given is not None else [site for site in dct.sites if site not in dct.out_sites]
    edits: dict[str, Edit] = {site: partial(keep, site) for site in only_read}
    with edited(model, edits | {site: partial(replace, site) for site in dct.out_sites}):
        yield


def _output(
    dct: Dictionary, activations: Mapping[str, Tensor], edit: LatentEdit | None, keep_error: bool
) -> Float[Tensor, "prompt pos d_out"]:
    """What the dictionary says of `activations`; with `keep_error` only what `edit` adds to that."""
    x = torch.cat([activations[site].flatten(2) for site in dct.sites], dim=-1).to(dct.W_enc)
    if edit is None:
        return x.new_zeros(*x.shape[:2], dct.d_out) if keep_error else dct(x)
    latents = dct.encode(x)
    return (edit(latents) - latents) @ dct.W_dec if keep_error else dct.decode(edit(latents), x)
