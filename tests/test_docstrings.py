"""Every example in a docstring runs and prints what it says."""

import doctest
import importlib
import pkgutil

import jax
import matplotlib.pyplot as plt
import pytest

import ssmkit

FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


def names():
    """Modules of the package, by name; nothing is imported yet, only packages are."""
    found = pkgutil.walk_packages(ssmkit.__path__, "ssmkit.")
    return ["ssmkit", *(m.name for m in found if not m.name.endswith("__main__"))]


@pytest.mark.parametrize("name", names())
def test_examples(name, tmp_path, monkeypatch):
    module = importlib.import_module(name)
    monkeypatch.chdir(tmp_path)  # examples may write files
    enabled = jax.config.jax_enable_x64
    finder = doctest.DocTestFinder(exclude_empty=True)
    runner = doctest.DocTestRunner(optionflags=FLAGS)
    report = []
    failed = sum(runner.run(test, out=report.append).failed for test in finder.find(module, name))
    assert failed == 0, "".join(report)
    assert jax.config.jax_enable_x64 == enabled
    plt.close("all")


def test_examples_are_found():
    """The finder looks into classes and methods, and a wrong example would fail."""
    finder = doctest.DocTestFinder(exclude_empty=True)
    found = {
        test.name
        for name in ("ssmkit.infer", "ssmkit.beliefs", "ssmkit.kalman.filter", "ssmkit.evidence")
        for test in finder.find(importlib.import_module(name), name)
        if test.examples
    }
    assert {"ssmkit.infer.infer", "ssmkit.evidence.log_evidence"} <= found
    wrong = doctest.DocTestParser().get_doctest(">>> 1 + 1\n3\n", {}, "wrong", None, 0)
    assert doctest.DocTestRunner(verbose=False).run(wrong, out=lambda text: None).failed == 1
