"""interp: what a language model computes, and where. The names of the contract, found on first use.

import interp loads no torch; interp.load_model does.
"""

from __future__ import annotations

import importlib
from typing import Any

_HOMES = {
    "load_model": "interp.decoder.loading",
    "captured": "interp.decoder.hooks",
    "edited": "interp.decoder.hooks",
    "load_task": "interp.data.tasks",
    "Task": "interp.data.tasks",
    "record": "interp.store.recording",
    "Store": "interp.store.reading",
    "ablate": "interp.causal.ablation",
    "patch": "interp.causal.patching",
    "path_patch": "interp.causal.paths",
    "attribute": "interp.causal.atp",
    "find_circuit": "interp.causal.circuits",
    "Circuit": "interp.causal.circuits",
    "trace": "interp.causal.tracing",
    "check": "interp.causal.conformance",
    "Conformance": "interp.causal.conformance",
    "generate": "interp.decoder.generation",
    "Effects": "interp.causal.effects",
    "InputError": "interp.errors",
}

__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'interp' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
