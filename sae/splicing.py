"""A dictionary in its model: inside the block the site's activation is replaced by what the dictionary makes of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from jaxtyping import Bool
from torch import Tensor

from interp.decoder.hooks import edited
from interp.decoder.loading import Model
from interp.decoder.sites import expand
from interp.errors import WrongModel
from sae.dictionary import Dictionary


def check_model(dct: Dictionary, model: Model) -> None:
    """WrongModel unless `dct` was trained on `model` (where the dictionary says on which); UnknownSite if the model has
    no such site."""
    made_on = dct.model.get("fingerprint")
    if made_on is not None and made_on != model.fingerprint:
        raise WrongModel(
            f'the dictionary was trained on "{dct.model.get("name")}" ({made_on[:19]}), not on "{model.name}" '
            f"({model.fingerprint[:19]}): load that model."
        )
    expand(dct.site, model.sites, model=f'"{model.name}"')


@contextmanager
def spliced(
    model: Model,
    dct: Dictionary,
    *,
    edit: Callable[[Tensor], Tensor] | None = None,
    keep_error: bool = False,
    mask: Bool[Tensor, "prompt pos"] | None = None,
) -> Iterator[None]:
    """Every forward pass inside the block has `decode(edit(encode(x)))` in place of x at `dct.site`.

    `edit` takes and returns latents [prompt, pos, d_sae]. `keep_error` adds x - decode(encode(x)) back, so that no edit
    means no change. Only positions where `mask` is True are replaced. WrongModel as `check_model`.
    """
    check_model(dct, model)

    def replace(activation: Tensor) -> Tensor:
        x = activation.flatten(2).to(dct.W_enc.dtype)
        latents = dct.encode(x)
        replaced = dct.decode(latents if edit is None else edit(latents))
        if keep_error:
            replaced = replaced + (x - dct.decode(latents))
        if mask is not None:
            replaced = torch.where(mask.unsqueeze(-1), replaced, x)
        return replaced.reshape(activation.shape).to(activation.dtype)

    with edited(model, {dct.site: replace}):
        yield
