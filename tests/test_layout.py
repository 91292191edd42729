"""The house's rules that a test can keep: imports point down, one home for transformer_lens, no pickle."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCES = [path for package in ("interp", "sae", "app") for path in (ROOT / package).rglob("*.py")]
_CATCHES = ("importing.py", "nanogpt.py")
"""Modules that name the error of a refused pickle."""
LOWER = {"decoder": 0, "data": 1, "store": 2, "causal": 2, "lenses": 2}


def imports(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_down(path):
    package, *rest = path.relative_to(ROOT).parts
    found = set(imports(path))
    tops = {name.split(".")[0] for name in found}
    if package == "interp" and rest[0] != "cli":
        assert not tops & {"sae", "app", "streamlit", "typer"} - ({"typer"} if rest[0] == "bundled" else set())
        assert not any(name.startswith("interp.cli") for name in found)
        here = LOWER.get(rest[0])
        for name in found if here is not None else ():
            parts = name.split(".")
            assert not (parts[0] == "interp" and len(parts) > 1 and LOWER.get(parts[1], -1) > here), name
    if package == "sae":
        assert not tops & {"app", "streamlit"}
    if package == "app":
        assert not tops & {"torch", "transformers", "transformer_lens"}
    if path.name != "loading.py":
        assert "transformer_lens" not in tops


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_is_unpickled_and_no_file_is_long(path):
    text = path.read_text(encoding="utf-8")
    found = set(imports(path)) - ({"pickle", "pickle.UnpicklingError"} if path.name in _CATCHES else set())
    assert not {"pickle", "dill", "joblib"} & {name.split(".")[0] for name in found}
    assert text.count("torch.load(") == len(re.findall(r"torch\.load\([^()]*weights_only=True\)", text))
    assert "allow_pickle=True" not in text and "unsafe_allow_html" not in text
    assert len(text.splitlines()) <= 400
