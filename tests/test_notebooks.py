"""The notebooks: executed from top to bottom, and the two forms of each say the same."""

import os

import jupytext
import nbclient
import nbformat
import pytest
from conftest import CACHE
from pages import ROOT

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.py"))


@pytest.mark.study
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_runs(path, monkeypatch):
    monkeypatch.setenv("MPLBACKEND", "module://matplotlib_inline.backend_inline")
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(CACHE))
    monkeypatch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.05")
    paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, paths)))
    notebook = jupytext.read(path)
    nbclient.NotebookClient(notebook, timeout=900, kernel_name="python3").execute()
    pictures = [o for cell in notebook.cells for o in cell.get("outputs", []) if _is_picture(o)]
    assert len(pictures) >= 5


def _is_picture(output):
    return "image/png" in output.get("data", {})


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_pair_is_in_step_and_without_outputs(path):
    script, paired = jupytext.read(path), nbformat.read(path.with_suffix(".ipynb"), as_version=4)

    def contents(notebook):
        return [(cell.cell_type, cell.source) for cell in notebook.cells]

    hint = f"run `jupytext --to ipynb {path.relative_to(ROOT)}`"
    assert contents(script) == contents(paired), hint
    for cell in paired.cells:
        assert not cell.get("outputs"), hint
        assert cell.get("execution_count") is None, hint
