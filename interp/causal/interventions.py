"""What replaces an activation: pure functions of tensors."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

METHODS = {
    "zero": "the activation set to 0",
    "mean": "its mean over the task's clean prompts, position by position",
}
"""What `ablate` can put in place of an activation."""


def position_means(value: Float[Tensor, "prompt pos ..."], lengths: Int[Tensor, " prompt"]) -> Float[Tensor, "pos ..."]:
    """Mean over prompts at each position, over the prompts that reach it; in float64, returned as given."""
    reach = torch.arange(value.shape[1], device=value.device) < lengths.to(value.device)[:, None]
    weight = reach.double().reshape(*reach.shape, *[1] * (value.ndim - 2))
    return ((value.double() * weight).sum(0) / weight.sum(0).clamp(min=1)).to(value.dtype)


def replace(
    value: Float[Tensor, "prompt pos *rest"],
    new: Float[Tensor, "prompt pos *rest"],
    where: Bool[Tensor, "prompt pos"],
    head: int | None = None,
) -> Float[Tensor, "prompt pos *rest"]:
    """`value` with `new` at the positions `where`; in one `head` of [prompt, pos, head, d_head] if given."""
    mask = where.reshape(*where.shape, *[1] * (value.ndim - 2))
    if head is not None:
        mask = mask & (torch.arange(value.shape[2], device=value.device) == head)[:, None]
    return torch.where(mask, new, value)
