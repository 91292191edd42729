"""Reading and replacing activations: the only code that attaches a hook.

Both are `with` blocks that hold the model's lock and take their hooks off again, whatever happens inside.

    with captured(model, ["2.resid_post"]) as cache, edited(model, {"1.z": zero}):
        logits = model(tokens)
    cache["blocks.2.hook_resid_post"]
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext

from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import Module

from interp.decoder.model import Model
from interp.decoder.sites import READ_ONLY, full, short
from interp.errors import InputError

Edit = Callable[[Tensor], Tensor]
"""An activation in, its replacement of the same shape out. The activation given must not be changed in place."""

Call = tuple[tuple, dict]
"""The positional and keyword arguments of a call."""


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
    sites = [sites] if isinstance(sites, str) else sites
    known = set(model.inner)
    inner = [site for site in sites if site in known]
    others = [site for site in sites if site not in known]
    names = inner + (model.expand(others, read_only=True) if others or not inner else [])

    def keep(name: str) -> Callable[[Tensor], None]:
        def hook(value: Tensor) -> None:
            cache[name] = value.clone()

        return hook

    with _hooked(model, {name: keep(name) for name in names}):
        yield cache


@contextmanager
def edited(model: Model, edits: Mapping[str, Edit]) -> Iterator[None]:
    """Inside the block every forward pass has `edits[site](activation)` in place of the activation at `site`.

    InputError for a site that can only be read.
    """
    functions, inner = {}, set(model.inner) if edits else set()
    for site, edit in edits.items():
        if full(site) in model.mixtures.read_only:
            layer, _, kind = short(full(site)).partition(".")
            raise InputError(f'"{site}" can be read and not edited: edit {layer}.{READ_ONLY[kind]} in its place.')
        for name in [site] if site in inner else model.expand(site):
            functions[name] = edit
    with model.lock, ExitStack() as stack:
        for name in functions:
            if match := _MIDDLE.fullmatch(name):
                block = model.bridge.blocks[int(match[1])].original_component
                functions[name] = stack.enter_context(_carried(block, functions[name]))
        stack.enter_context(_hooked(model, functions))
        yield


_MIDDLE = re.compile(r"blocks\.(\d+)\.hook_resid_mid")


@contextmanager
def _carried(block: Module, edit: Edit) -> Iterator[Edit]:
    """An edit of `resid_mid` that is one of the stream. The bridge's hook point is what the MLP reads; the stream goes
    past it as it was, so that the change is added to it after the block."""
    change: list[Tensor | None] = [None]

    def made(value: Tensor) -> Tensor:
        new = edit(value)
        change[0] = None if new is None or new is value else new - value
        return new

    def add(block: Module, args: tuple, out: Tensor | tuple) -> Tensor | tuple:
        if change[0] is None:
            return out
        return (out[0] + change[0], *out[1:]) if isinstance(out, tuple) else out + change[0]

    handle = block.register_forward_hook(add)
    try:
        yield made
    finally:
        handle.remove()


class Enough(Exception):
    """What is wanted of a pass has been seen: raised in a hook, it ends the pass."""


def watch(
    model: Model, tokens: Int[Tensor, "prompt pos"], functions: Mapping[str, Callable[[Tensor], None]],
    *, logits: bool = False,
) -> Float[Tensor, "prompt pos d_vocab"] | None:  # fmt: skip
    """One forward pass in which `functions[site](activation)` is called for each site, by full name.

    Without `logits` the pass ends as soon as the last of them was called: what stands above is not computed. The
    functions must not change what they are given. Where no site lies inside attention, attention is the fused kernel;
    where all lie between blocks, the plain model runs, which is faster still.
    """
    waiting = set(functions)

    def seen(name: str) -> Callable[[Tensor], None]:
        def hook(value: Tensor) -> None:
            functions[name](value)
            waiting.discard(name)
            if not waiting and not logits:
                raise Enough

        return hook

    if model.plain is not None and all(_BETWEEN.fullmatch(name) for name in functions):
        with _between(model, {name: seen(name) for name in functions}):
            try:
                return model.plain_pass(tokens, logits=logits)
            except Enough:
                return None
    inside = any(".attn." in name or name.endswith("hook_attn_out") for name in functions)
    with _hooked(model, {name: seen(name) for name in functions}), nullcontext() if inside else model.fused_attention():
        try:
            return model(tokens)
        except Enough:
            return None


_BETWEEN = re.compile(r"blocks\.(\d+)\.hook_resid_(pre|post)")


@contextmanager
def _between(model: Model, functions: Mapping[str, Callable[[Tensor], None]]) -> Iterator[None]:
    """`functions` called with what goes into blocks of the plain model, or comes out."""

    def into(function: Callable[[Tensor], None]) -> Callable:
        return lambda block, args, kwargs: function(args[0] if args else kwargs["hidden_states"])

    def out_of(function: Callable[[Tensor], None]) -> Callable:
        return lambda block, args, out: function(out[0] if isinstance(out, tuple) else out)

    with model.lock, ExitStack() as stack:
        for name, function in functions.items():
            layer, side = _BETWEEN.fullmatch(name).groups()
            block = model.plain_blocks[int(layer)]
            if side == "pre":
                handle = block.register_forward_pre_hook(into(function), with_kwargs=True)
            else:
                handle = block.register_forward_hook(out_of(function))
            stack.callback(handle.remove)
        yield


@contextmanager
def called(model: Model, blocks: Iterable[Module], cache: object) -> Iterator[list[Call]]:
    """What each of `blocks` is called with in a forward pass inside the block, in order.

    Where a block is given a cache of keys and values it gets `cache` instead.
    """
    calls: list[Call] = []

    def keep(module: Module, args: tuple, kwargs: dict) -> Call:
        call = tuple(map(swapped, args)), {key: swapped(value) for key, value in kwargs.items()}
        calls.append(call)
        return call

    def swapped(value: object) -> object:
        return cache if hasattr(value, "update") and hasattr(value, "get_seq_length") else value

    with model.lock, ExitStack() as stack:
        for block in blocks:
            stack.callback(block.register_forward_pre_hook(keep, with_kwargs=True).remove)
        yield calls
