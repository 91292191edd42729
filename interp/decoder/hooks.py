"""Reading and replacing activations: the only code that attaches a hook.

Both are `with` blocks that hold the model's lock and take their hooks off again, whatever happens inside.

    with captured(model, ["2.resid_post"]) as cache, edited(model, {"1.z": zero}):
        logits = model(tokens)
    cache["blocks.2.hook_resid_post"]
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager

from torch import Tensor

from interp.decoder.loading import Model
from interp.decoder.sites import expand

Edit = Callable[[Tensor], Tensor]
"""An activation in, its replacement of the same shape out. The activation given must not be changed in place."""


@contextmanager
def _hooked(model: Model, functions: Mapping[str, Callable[[Tensor], Tensor | None]]) -> Iterator[None]:
    with model.lock, ExitStack() as stack:
        for name, function in functions.items():
            handle = model.hook_point(name).add_hook(lambda value, hook, f=function: f(value))
            stack.callback(handle.hook.remove)
            stack.callback(model.hook_point(name).fwd_hooks.remove, handle)
        yield


@contextmanager
def captured(model: Model, sites: str | Sequence[str]) -> Iterator[dict[str, Tensor]]:
    """The activations of the last forward pass inside the block, by full name; copies, so that no later edit in place
    reaches them. They carry gradients where gradients are on."""
    cache: dict[str, Tensor] = {}
    names = expand(sites, model.sites, model=f'"{model.name}"')

    def keep(name: str) -> Callable[[Tensor], None]:
        def hook(value: Tensor) -> None:
            cache[name] = value.clone()

        return hook

    with _hooked(model, {name: keep(name) for name in names}):
        yield cache


@contextmanager
def edited(model: Model, edits: Mapping[str, Edit]) -> Iterator[None]:
    """Inside the block every forward pass has `edits[site](activation)` in place of the activation at `site`."""
    functions = {}
    for site, edit in edits.items():
        for name in expand(site, model.sites, model=f'"{model.name}"'):
            functions[name] = edit
    with _hooked(model, functions):
        yield
