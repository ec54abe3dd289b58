"""The documentation: every block runs, every example is right, every public name has its place."""

import ast
import importlib
import re
import sys

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import numpyro.distributions as dist
import pytest
from pages import ROOT, code_blocks, relative_links, run_blocks

import ssmkit as sk

DOCS = ROOT / "docs"
PAGES = sorted(path.name for path in DOCS.glob("*.md"))
# The build of the docs executes getting-started; index shows a fragment.
ELSEWHERE = ("index.md", "getting-started.md")
RUNNABLE = [name for name in PAGES if name not in ELSEWHERE and code_blocks(DOCS / name)]


@pytest.fixture
def on_path(monkeypatch):
    """Let the examples and the extensions of the docs be imported."""
    for folder in ("examples", "extensions"):
        monkeypatch.syspath_prepend(DOCS / folder)
    yield importlib.import_module
    for name in ("grid", "ricker", "public_names", "tex_brackets"):
        sys.modules.pop(name, None)


@pytest.mark.study
@pytest.mark.parametrize("name", RUNNABLE)
def test_page_runs_as_printed(name, on_path, capsys):
    run_blocks(DOCS / name)
    plt.close("all")


@pytest.mark.parametrize("name", PAGES)
def test_links_lead_somewhere(name):
    for link in relative_links(DOCS / name):
        target = link.replace("generated/", "../notebooks/")
        assert (DOCS / target).exists(), link


class Linear(sk.StateSpaceModel):
    """A linear Gaussian model with a scalar state."""

    persistence: jax.Array

    def initial(self, u):
        return dist.Normal(0.0, 1.0)

    def transition(self, x, u):
        return dist.Normal(self.persistence * x, 0.5)

    def emission(self, x, u):
        return dist.Normal(x, 0.7)


@pytest.fixture(scope="module")
def gappy():
    ys = np.array(sk.simulate(0, Linear(0.8), 30).observations)
    ys[[0, 10, 11, 29]] = np.nan
    return ys


@pytest.fixture
def pair(on_path, gappy):
    """The same posterior, on the grid and exactly."""
    model, grid = Linear(jnp.array(0.8)), on_path("grid").GridFilter(-6.0, 6.0, num_points=120)
    return [sk.infer(0, engine, model, gappy) for engine in (grid, sk.Kalman())]


def test_grid_engine_agrees_with_kalman(pair):
    on_grid, exact = pair
    np.testing.assert_allclose(on_grid.log_evidence, exact.log_evidence, rtol=1e-9)
    np.testing.assert_allclose(on_grid.log_likelihood, exact.log_likelihood, atol=1e-9)
    for name in ("predicted", "filtered", "states"):
        ours, theirs = getattr(on_grid, name), getattr(exact, name)
        np.testing.assert_allclose(ours.mean(), theirs.mean(), atol=1e-8)
        np.testing.assert_allclose(ours.std(), theirs.std(), atol=1e-8)
    ahead, beyond = (sk.forecast(1, one, 3).states for one in pair)
    np.testing.assert_allclose(ahead.std(), beyond.std(), atol=1e-8)


def test_grid_engine_scans_over_the_mask_of_traced_data(pair, gappy):
    engine, model = pair[0].engine, pair[0].target
    value = jax.jit(lambda y: sk.log_evidence(jax.random.key(0), engine, model, y))(gappy)
    np.testing.assert_allclose(value, pair[1].log_evidence, rtol=1e-9)


def test_grid_engine_draws_paths(pair):
    paths, reference = (np.asarray(one.states.sample(1, 4000)) for one in pair)
    for moment in (_neighbours, _squares):
        found, expected = moment(paths), moment(reference)
        error = np.sqrt((found.var(0) + expected.var(0)) / 4000)
        assert np.all(np.abs(found.mean(0) - expected.mean(0)) < 5 * error)


def _neighbours(paths):
    return paths[:, 1:] * paths[:, :-1]


def _squares(paths):
    return paths**2


def test_grid_engine_has_the_gradient_of_kalman(on_path, gappy):
    def slope(engine):
        def evidence(a):
            return sk.log_evidence(jax.random.key(0), engine, Linear(a), gappy)

        return jax.jit(jax.grad(evidence))(0.8)

    grid = on_path("grid").GridFilter(-6.0, 6.0, num_points=120)
    np.testing.assert_allclose(slope(grid), slope(sk.Kalman()), rtol=1e-8)


def test_grid_engine_refuses_what_it_cannot_do(on_path):
    engine = on_path("grid").GridFilter(-1.0, 1.0)
    with pytest.raises(sk.errors.EngineError, match="scalar state with a density"):
        sk.infer(0, engine, sk.models.LocalLevel(1.0, 1.0), np.zeros(5))


@pytest.mark.study
def test_evidences_of_the_engines_page(on_path):
    model = on_path("ricker").Ricker(growth_rate=0.5, capacity=50.0, scale=0.2)
    counts = sk.simulate(0, model, 60).observations
    grid = on_path("grid").GridFilter(-1.0, 7.0, num_points=400)
    text = (DOCS / "engines.md").read_text(encoding="utf-8").replace("−", "-")
    for engine in (grid, sk.UnscentedKalman(), sk.ExtendedKalman()):
        value = float(sk.log_evidence(jax.random.key(0), engine, model, counts))
        assert f"| {value:.2f} |" in text, (engine, value)


def test_every_public_name_has_a_docstring_and_a_place(on_path):
    check = on_path("public_names")
    modules = _setting("public_modules")
    assert check.undocumented(modules) == []
    assert check.unlisted(modules, _listed()) == []


def test_the_check_finds_a_name_without_docstring_or_place(on_path, monkeypatch):
    check = on_path("public_names")

    class Bare:
        def method(self):
            pass

    Bare.__module__ = "ssmkit.models"
    monkeypatch.setattr(sk.models, "Bare", Bare, raising=False)
    monkeypatch.setattr(sk.models, "__all__", [*sk.models.__all__, "Bare"])
    expected = ["ssmkit.models.Bare", "ssmkit.models.Bare.method"]
    assert check.undocumented(["ssmkit.models"]) == expected
    assert check.unlisted(["ssmkit.models"], _listed()) == ["ssmkit.models.Bare"]


def _setting(name):
    for node in ast.parse((DOCS / "conf.py").read_text()).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == name:
            return ast.literal_eval(node.value)
    raise LookupError(name)


def _listed():
    """Dotted names of the directives on the API pages."""
    names = []
    for page in (DOCS / "api").glob("*.rst"):
        module = ""
        for kind, name in re.findall(
            r"^\.\. (currentmodule|auto\w+):: (\S+?)(?:\(\))?$", page.read_text(), re.MULTILINE
        ):
            if kind == "currentmodule":
                module = name
            elif kind != "automodule":
                names.append(name if name.startswith("ssmkit.") else f"{module}.{name}")
    return names


def test_formulas_of_docstrings_become_math(on_path):
    convert = on_path("tex_brackets").convert
    text = "A law.\n\n    \\[x_0 \\sim N, \\qquad\n    y\\]\n\n    Here \\(a_t\n    b\\) is."
    expected = "A law.\n\n    .. math::\n\n       x_0 \\sim N, \\qquad\n       y\n\n\n"
    assert convert(text) == expected + "    Here :math:`a_t b` is."
