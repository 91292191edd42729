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
    "compare": "interp.causal.comparing",
    "along": "interp.causal.comparing",
    "Comparison": "interp.causal.comparing",
    "convert": "interp.decoder.converting",
    "merge": "interp.decoder.merging",
    "find_direction": "interp.causal.directions",
    "Direction": "interp.causal.directions",
    "dose_response": "interp.causal.steering",
    "DoseResponse": "interp.causal.steering",
    "perplexity": "interp.causal.perplexity",
    "orthogonalise": "interp.causal.orthogonal",
    "routing": "interp.lenses.routing",
    "check": "interp.causal.conformance",
    "Conformance": "interp.causal.conformance",
    "generate": "interp.decoder.generation",
    "Effects": "interp.causal.effects",
    "patterns": "interp.lenses.heads",
    "head_scores": "interp.lenses.heads",
    "head_circuits": "interp.lenses.eigenvalues",
    "composition": "interp.lenses.composition",
    "heads_and_effects": "interp.lenses.causality",
    "logit_lens": "interp.lenses.logits",
    "Lens": "interp.lenses.logits",
    "lens_curve": "interp.lenses.curves",
    "LensCurve": "interp.lenses.curves",
    "train_tuned_lens": "interp.lenses.tuned",
    "TunedLens": "interp.lenses.tuned",
    "attribute_logits": "interp.lenses.attribution",
    "Attribution": "interp.lenses.attribution",
    "InputError": "interp.errors",
}

__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'interp' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
