"""Sparse autoencoders: `train` one on a store, `load` it, `evaluate` it in its model, read its `features`.

    dct = sae.train(store, site="2.resid_post", d_sae=4096, k=32, out="workspace/saes/demo")
    report = sae.evaluate(dct, model, "text/*.txt")

Names are found on first use, so that `import sae` and `sae.features` load no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sae import features as features
    from sae.circuits import FeatureCircuit as FeatureCircuit
    from sae.circuits import find_feature_circuit as find_feature_circuit
    from sae.dictionary import Dictionary as Dictionary
    from sae.evaluation import Report as Report
    from sae.evaluation import evaluate as evaluate
    from sae.files import load as load
    from sae.logs import frontier as frontier
    from sae.looking import activity as activity
    from sae.probing import probe as probe
    from sae.splicing import clamp as clamp
    from sae.splicing import scale as scale
    from sae.splicing import spliced as spliced
    from sae.splicing import zero as zero
    from sae.training import train as train
    from sae.training import train_grid as train_grid

_HOMES = {
    "activity": "sae.looking",
    "Dictionary": "sae.dictionary",
    "FeatureCircuit": "sae.circuits",
    "Report": "sae.evaluation",
    "clamp": "sae.splicing",
    "evaluate": "sae.evaluation",
    "find_feature_circuit": "sae.circuits",
    "frontier": "sae.logs",
    "load": "sae.files",
    "probe": "sae.probing",
    "scale": "sae.splicing",
    "spliced": "sae.splicing",
    "train": "sae.training",
    "train_grid": "sae.training",
    "zero": "sae.splicing",
}
__all__ = [*_HOMES, "features"]


def __getattr__(name: str) -> Any:
    if name == "features":
        return import_module("sae.features")
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'sae' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
