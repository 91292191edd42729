"""Between the weights of models, and beyond: pure functions of tensors.

linear    (1 - t) a + t b
slerp     along the arc from a to b, a tensor a vector (Shoemake 1985)
task      base + sum of weight * (model - base) (Ilharco et al. 2212.04089)
DARE      task vectors of which a share p is dropped at random and the rest is 1 / (1 - p) as large, so that the
          mean over draws is the task vector (Yu et al. 2311.03099, section 3.2)
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor


def _wide(tensor: Tensor) -> Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def linear(a: Float[Tensor, "*shape"], b: Float[Tensor, "*shape"], t: float) -> Float[Tensor, "*shape"]:
    """`a` at 0 and `b` at 1, to the bit; beyond them too. Rounded once, to the dtype of `a`."""
    if t in (0, 1):
        return (b if t else a).clone()
    return torch.lerp(_wide(a), _wide(b), t).to(a.dtype)


def slerp(a: Float[Tensor, "*shape"], b: Float[Tensor, "*shape"], t: float) -> Float[Tensor, "*shape"]:
    """`a` at 0 and `b` at 1, to the bit; between them the direction turns evenly. `linear` where there is no arc: of
    parallel, opposite and zero tensors."""
    u, v = a.double(), b.double()
    lengths = u.norm() * v.norm()
    angle = torch.acos((u.flatten() @ v.flatten() / lengths).clamp(-1, 1)) if lengths > 0 else lengths
    if t in (0, 1) or torch.sin(angle) < 1e-6:
        return linear(a, b, t)
    mixed = torch.sin((1 - t) * angle) * u + torch.sin(t * angle) * v
    return (mixed / torch.sin(angle)).to(a.dtype)


def dare(delta: Float[Tensor, "*shape"], p: int | float, draw: torch.Generator) -> Float[Tensor, "*shape"]:
    """A task vector with each number dropped with probability `p`, the others divided by 1 - p."""
    if not p:
        return delta
    kept = torch.rand(delta.shape, generator=draw) >= p  # drawn on the CPU: the same on every device
    return torch.where(kept.to(delta.device), delta / (1 - p), 0)


def task_vectors(
    base: Float[Tensor, "*shape"],
    models: Sequence[Float[Tensor, "*shape"]],
    weights: Sequence[float],
    *,
    p: int | float = 0.0,
    draw: torch.Generator | None = None,
) -> Float[Tensor, "*shape"]:
    """`base` plus what each model has learnt, `weights` times; with `p` a share of it dropped (`dare`)."""
    total = _wide(base).clone()
    for model, weight in zip(models, weights, strict=True):
        total += weight * dare(_wide(model) - _wide(base), p, draw or torch.Generator())
    return total.to(base.dtype)


BETWEEN = {"linear": linear, "slerp": slerp}
