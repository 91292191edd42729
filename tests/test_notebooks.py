"""Every notebook runs from top to bottom."""

import tempfile
from pathlib import Path

import pytest

NOTEBOOKS = sorted((Path(__file__).parent.parent / "notebooks").glob("*.ipynb"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning", "ignore::RuntimeWarning")
def test_the_notebook_runs(path, tmp_path):
    import nbformat
    from nbclient import NotebookClient
    from traitlets.config import Config

    notebook = nbformat.read(path, as_version=4)
    with tempfile.TemporaryDirectory() as short:  # sockets in a folder, whose path may have 100 characters: a port can
        sockets = Config({"KernelManager": {"transport": "ipc", "ip": f"{short}/kernel"}})  # be taken before it is used
        resources = {"metadata": {"path": str(tmp_path)}}
        NotebookClient(notebook, timeout=240, resources=resources, config=sockets).execute()
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    assert not any(output.output_type == "error" for output in outputs)
    assert sum("application/vnd.plotly.v1+json" in output.get("data", {}) for output in outputs) >= 2
