"""The layers of the package, and a few habits, read off the source with ``ast``."""

import ast
import inspect
from functools import cache
from pathlib import Path

import pytest

import ssmkit

PACKAGE = Path(ssmkit.__file__).parent
# A module may import what is in its own layer or in one above it in this list.
LAYERS = (
    ("errors", "linalg", "keys", "typing", "reprs"),
    ("beliefs", "records", "posterior", "measures"),
    ("models",),
    ("kalman", "hidden_markov", "smc", "evidence", "predictive"),
    ("learned",),
    ("objectives",),
    ("engines",),
    (
        *("infer", "stream", "series", "validation", "forecast", "data", "plots"),
        *("diagnostics", "diagnose", "replicates", "bounds", "alarm", "summary", "compare"),
    ),
    ("serialise", "checkpoint", "encoding", "interop", "cli", "demo", "demo_cases", "report"),
)
# An engine that works with another one receives it; these never import each other.
ENGINES = (
    "kalman",
    "extended_kalman",
    "fab",
    "unscented_kalman",
    "ensemble_kalman",
    "forward_backward",
    "gradient_fit",
    "nuts",
    "particle_metropolis_hastings",
    "smc",
    "sixo",
    "online_variational",
    "guided_smc",
    "recursive_likelihood",
)
# Upward imports inside functions: the conveniences of a posterior, which anyone may delete, and
# what would make a circle. Whoever adds one here says why.
LATE = {
    ("posterior", "engines.batch"),  # posterior[b]
    ("posterior", "infer"),  # .apply
    ("posterior", "diagnostics"),  # .components
    ("posterior", "summary"),  # .summary, repr
    ("posterior", "interop.arviz"),  # .to_arviz
    ("posterior", "serialise"),  # .save
    ("infer", "checkpoint"),  # which is read and written by serialise
    ("stream.files", "serialise"),  # .save, .load
}


@cache
def modules():
    """Module name without the package -> syntax tree; a package has the name of its folder."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        name = ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
        found[name.removesuffix(".__init__")] = ast.parse(path.read_text(encoding="utf-8"))
    return found


def _is_type_checking(node):
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)


def _imports(tree, inside=False):
    """Yield ``(imported name, whether inside a function, line)``; type checking is left out."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, inside, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"relative import in line {node.lineno}"
            # ``from a import b`` may import the module a.b
            yield from ((f"{node.module}.{a.name}", inside, node.lineno) for a in node.names)
        elif not _is_type_checking(node):
            is_function = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            yield from _imports(node, inside or is_function)


def own_imports():
    """Yield ``(importing module, imported module, inside a function, line)`` for this package."""
    for name, tree in modules().items():
        for target, inside, line in _imports(tree):
            if target.split(".")[0] != "ssmkit":
                continue
            parts = target.split(".")[1:]
            while parts and ".".join(parts) not in modules():
                parts.pop()
            yield name, ".".join(parts), inside, line


def layer(name):
    """Number of the layer; the package itself is all of it, for the top layer only."""
    if name == "":
        return len(LAYERS) - 1
    top = name.split(".")[0]
    for number, names in enumerate(LAYERS):
        if top in names:
            return number
    raise AssertionError(f"ssmkit/{name}.py has no layer: add it to LAYERS")


def test_every_module_has_a_layer():
    for name in modules():
        if name != "__init__":
            layer(name)


def test_imports_point_to_the_same_layer_or_down():
    wrong = [
        f"ssmkit/{name}.py:{line} imports ssmkit.{target}"
        for name, target, inside, line in own_imports()
        if name != "__init__" and not inside and layer(target) > layer(name)
    ]
    assert wrong == []


def test_only_named_conveniences_import_upwards_inside_functions():
    late = {
        (name, target)
        for name, target, inside, _ in own_imports()
        if name != "__init__" and inside and layer(target) > layer(name)
    }
    assert late <= LATE


def test_engines_do_not_import_each_other():
    names = {f"engines.{name}" for name in ENGINES}
    assert names <= set(modules())
    wrong = [
        (name, target)
        for name, target, _, _ in own_imports()
        if name in names and target in names and target != name
    ]
    assert wrong == []


def test_engines_are_not_imported_by_what_they_share():
    names = {f"engines.{name}" for name in ENGINES}
    wrong = [(name, t) for name, t, _, _ in own_imports() if t in names and name != "__init__"]
    assert [pair for pair in wrong if pair[0].startswith("engines")] == []


def test_numpy_and_jax_are_the_only_heavy_imports_at_the_top():
    """``import ssmkit`` must stay cheap: the rest is imported where it is used."""
    late = {"pandas", "scipy", "matplotlib", "arviz", "distrax", "optax", "tqdm", "h5py"}
    eager = {"interop", "cli", "demo", "demo_cases", "plots", "serialise", "report"}
    wrong = [
        f"ssmkit/{name}.py:{line} imports {target}"
        for name, tree in modules().items()
        if name.split(".")[0] not in eager
        for target, inside, line in _imports(tree)
        if not inside and target.split(".")[0] in late
    ]
    assert wrong == []


def test_no_assert_statements():
    wrong = [
        f"ssmkit/{name}.py:{node.lineno}"
        for name, tree in modules().items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Assert)
    ]
    assert wrong == []  # python -O would remove them: errors are named


def public_names():
    found = {f"sk.{n}": v for n, v in vars(ssmkit).items() if not n.startswith("_")}
    found |= {f"sk.models.{n}": getattr(ssmkit.models, n) for n in ssmkit.models.__all__}
    return {n: v for n, v in found.items() if inspect.isfunction(v) or inspect.isclass(v)}


# Records that a verb hands out, and which nobody builds by hand.
RECORDS = ("Posterior", "Forecast", "Simulation", "Gaussian", "GaussianMixture")
RECORDS += (
    "Particles",
    "Categorical",
    "Program",
    "Diagnosis",
    "Replicates",
    "Alarm",
    "EvidenceBounds",
)


@pytest.mark.parametrize("name", sorted(public_names()))
def test_public_names_are_documented(name):
    text = inspect.getdoc(public_names()[name]) or ""
    assert text, name
    if name.split(".")[-1] in RECORDS:
        assert "Attributes:" in text or name.endswith("Simulation")
    else:
        assert "Example:" in text and ">>>" in text


def test_the_walk_sees_upward_imports():
    """The walk itself is tested: a planted import upwards is found, at the top and inside."""
    tree = ast.parse(
        "from ssmkit.engines.kalman import Kalman\n"
        "def late():\n"
        "    from ssmkit import infer\n"
        "if TYPE_CHECKING:\n"
        "    import ssmkit.cli\n"
    )
    assert list(_imports(tree)) == [
        ("ssmkit.engines.kalman.Kalman", False, 1),
        ("ssmkit.infer", True, 3),
    ]
