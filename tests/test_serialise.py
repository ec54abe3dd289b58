"""Saved posteriors: bit-equal after loading, refused when damaged, data and never code."""

import functools
import json
import os
import pickle
import sys
import zipfile
from types import ModuleType
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

import ssmkit as sk
from ssmkit import serialise
from ssmkit.beliefs import Labels
from ssmkit.encoding import Encoded, decode, encode
from ssmkit.encoding.names import Resolver, name_of
from ssmkit.errors import SaveError
from ssmkit.serialise import load_posterior

YS = sk.data.load("nile").iloc[:30].copy()
YS.iloc[[3, 9]] = np.nan


class Walk(sk.StateSpaceModel):
    scale: jax.Array
    twice: float = eqx.field(static=True)

    def __init__(self, scale):
        self.scale, self.twice = scale, 2.0 * float(np.asarray(scale))

    def initial(self, u):
        return dist.Normal(900.0, 100.0)

    def transition(self, x, u):
        return dist.Normal(x, self.scale)

    def emission(self, x, u):
        return dist.Normal(x, 120.0)


def level():
    scale = numpyro.sample("scale", dist.HalfNormal(100.0))
    return sk.models.LocalLevel(scale**2, numpyro.sample("noise", dist.HalfNormal(300.0)) ** 2)


def decay(x):
    return 0.9 * x


@pytest.fixture(scope="module")
def plain():
    return sk.infer(0, sk.Kalman(), sk.models.LocalLevel(1469.0, 15099.0), YS)


@pytest.fixture(scope="module")
def laplace():
    optimizer = sk.optimizer(optax.adam, 0.1)
    engine = sk.GradientFit(
        sk.Kalman(), optimizer=optimizer, num_starts=1, laplace_draws=5, tolerance=1e-4
    )
    return sk.infer(0, engine, level, YS, progress=False)


@pytest.fixture(scope="module")
def structural():
    model = sk.models.LocalLevel(1469.0, 15099.0) + sk.models.Seasonal(4, 10.0)
    return sk.infer(0, sk.Kalman(form="square_root"), model, YS)


@pytest.fixture(scope="module")
def own():
    return sk.infer(0, sk.Kalman(), Walk(jnp.asarray(40.0)), YS)


@pytest.fixture(scope="module")
def markov():
    stay = [[0.9, 0.1], [0.2, 0.8]]
    model = sk.models.DiscreteHMM.normal([0.5, 0.5], stay, [800.0, 1100.0], [90.0, 130.0])
    return sk.infer(0, sk.ForwardBackward(), model, YS)


@pytest.fixture(scope="module")
def network():
    mlp = eqx.nn.MLP("scalar", "scalar", 3, 1, activation=jax.nn.relu, key=jax.random.key(1))
    model = sk.models.AdditiveGaussian(decay, mlp, 1.0, 0.5, 0.0, 1.0)
    return sk.infer(0, sk.ExtendedKalman(), model, np.linspace(-1, 1, 12))


KINDS = ["plain", "laplace", "structural", "own", "markov", "network"]
USING = [Walk, level, decay]


def assert_bit_equal(a, b):
    """Same types, structure, dtypes and bits, also outside what jax sees as leaves."""
    first, second = encode(a), encode(b)
    assert first.tree == second.tree
    assert first.classes == second.classes
    for one, other in zip(first.arrays, second.arrays, strict=True):
        assert (one.dtype, one.shape, one.tobytes()) == (other.dtype, other.shape, other.tobytes())


@pytest.mark.parametrize("kind", KINDS)
def test_round_trip_is_bit_equal(kind, request, tmp_path):
    posterior = request.getfixturevalue(kind)
    loaded = load_posterior(posterior.save(tmp_path / "a.ssm"), using=USING)
    assert_bit_equal(posterior, loaded)
    leaves, structure = jax.tree.flatten(posterior)
    others, same_structure = jax.tree.flatten(loaded)
    assert structure == same_structure  # static fields too: so nothing is compiled anew
    for one, other in zip(leaves, others, strict=True):
        assert type(one) is type(other)
        if eqx.is_array_like(one):
            assert np.asarray(one).tobytes() == np.asarray(other).tobytes()
    assert posterior.engine == loaded.engine
    assert posterior.data.labels == loaded.data.labels
    assert repr(posterior) == repr(loaded)
    assert repr(posterior.parts.get("estimates")) == repr(loaded.parts.get("estimates"))


@pytest.mark.parametrize("kind", ["plain", "laplace", "own"])
def test_a_loaded_posterior_goes_on(kind, request, tmp_path):
    posterior = request.getfixturevalue(kind)
    loaded = load_posterior(posterior.save(tmp_path / "a.ssm"), using=USING)
    assert repr(posterior.summary()) == repr(loaded.summary())
    pd.testing.assert_frame_equal(
        sk.forecast(1, posterior, 3).to_frame(), sk.forecast(1, loaded, 3).to_frame()
    )
    assert_bit_equal(posterior.states.sample(2, 4), loaded.states.sample(2, 4))
    new = YS.iloc[:12]
    assert_bit_equal(posterior.apply(new).parts, loaded.apply(new).parts)


def test_the_users_own_class_has_to_be_handed_over(own, laplace, tmp_path):
    path = own.save(tmp_path / "own.ssm")
    with pytest.raises(SaveError, match=r"Walk: code is never in a file(.|\n)*using=\[Walk\]"):
        load_posterior(path)
    assert load_posterior(path, using=[Walk]).model.twice == 80.0
    assert load_posterior(path, using=(own.model,)).model.twice == 80.0
    path = laplace.save(tmp_path / "program.ssm")
    with pytest.raises(SaveError, match=r"using=\[level\]"):
        load_posterior(path, using=[Walk])
    assert load_posterior(path, using=[sk.program(level)]).target.fn is level
    with pytest.raises(SaveError, match="classes and functions"):
        load_posterior(path, using=["level"])


def test_a_class_with_other_fields_is_refused(own, tmp_path):
    path = own.save(tmp_path / "own.ssm")

    class Changed(eqx.Module):
        scale: jax.Array
        half: float

    Changed.__name__, Changed.__qualname__ = "Walk", "Walk"
    with pytest.raises(SaveError, match=r"other fields(.|\n)*twice(.|\n)*half"):
        load_posterior(path, using=[Changed])


def rewrite(path, **changes):
    """Change entries of the manifest and leave the rest as it is."""
    with zipfile.ZipFile(path) as old:
        parts = {name: old.read(name) for name in old.namelist()}
    manifest = json.loads(parts["manifest.json"]) | changes
    parts["manifest.json"] = json.dumps(manifest).encode()
    with zipfile.ZipFile(path, "w") as new:
        for name, part in parts.items():
            new.writestr(name, part)


def test_other_versions_kinds_and_formats_are_refused(plain, tmp_path):
    path = plain.save(tmp_path / "a.ssm")
    for changes, words in (
        ({"schema": 2, "ssmkit": "9.9"}, r"another version(.|\n)*schema 2, by ssmkit 9\.9"),
        ({"kind": "stream"}, "something else(.|\n)*stream"),
        ({"format": "other"}, "not written by ssmkit"),
        ({"classes": {}}, "damaged"),
        ({"fingerprint": "0" * 64}, "fingerprint"),
        ({"num_arrays": 3}, "fingerprint"),
        ({"num_arrays": 10**6}, "damaged"),
    ):
        plain.save(path)
        rewrite(path, **changes)
        with pytest.raises(SaveError, match=words):
            load_posterior(path)
    np.savez(tmp_path / "other.npz", a=np.zeros(3))
    (tmp_path / "text.ssm").write_text("hello")
    (tmp_path / "empty.ssm").write_bytes(b"")
    for name in ("other.npz", "text.ssm", "empty.ssm"):
        with pytest.raises(SaveError, match=r"not written by ssmkit"):
            load_posterior(tmp_path / name)
    with pytest.raises(FileNotFoundError):
        load_posterior(tmp_path / "missing.ssm")


def test_a_truncated_file_is_refused(plain, tmp_path):
    path = plain.save(tmp_path / "a.ssm")
    whole = path.read_bytes()
    for size in np.linspace(2, len(whole) - 1, 25).astype(int):
        path.write_bytes(whole[:size])
        with pytest.raises(SaveError, match="damaged"):
            load_posterior(path)


def test_flipped_bits_are_found_or_harmless(plain, tmp_path):
    path = plain.save(tmp_path / "a.ssm")
    whole = path.read_bytes()
    rng, refused = np.random.default_rng(0), 0
    for place in rng.integers(0, len(whole), 150):
        broken = bytearray(whole)
        broken[place] ^= 1 << rng.integers(8)
        path.write_bytes(bytes(broken))
        try:
            loaded = load_posterior(path)
        except SaveError:
            refused += 1
        else:  # a date or an attribute of the archive
            assert_bit_equal(plain, loaded)
    assert refused > 50


def test_a_failed_write_leaves_the_old_file_alone(plain, tmp_path, monkeypatch):
    path = plain.save(tmp_path / "a.ssm")
    before = path.read_bytes()

    def fail(*args, **kwargs):
        raise OSError("disk full")

    monkeypatch.setattr(serialise.np.lib.format, "write_array", fail)
    with pytest.raises(OSError, match="disk full"):
        plain.save(path)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["a.ssm"]


def test_nothing_is_pickled(laplace, tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("pickle was used")

    for name in ("dump", "dumps", "load", "loads", "Pickler", "Unpickler"):
        monkeypatch.setattr(pickle, name, refuse)
    path = laplace.save(tmp_path / "a.ssm")
    load_posterior(path, using=[level])
    with zipfile.ZipFile(path) as archive:
        for name in archive.namelist():
            data = archive.read(name)
            if name == "manifest.json":
                json.loads(data)
            else:
                assert data.startswith(b"\x93NUMPY")
                assert b"'O'" not in data[:128]  # Python objects would be pickled
            assert not data.startswith(b"\x80")


class Trap:
    sprung = False

    def __reduce__(self):
        return setattr, (Trap, "sprung", True)


def test_a_smuggled_pickle_is_not_read(plain, tmp_path):
    path = plain.save(tmp_path / "a.ssm")
    np.save(tmp_path / "trap.npy", np.array([Trap()], dtype=object), allow_pickle=True)
    with zipfile.ZipFile(path) as old:
        parts = {name: old.read(name) for name in old.namelist()}
    parts["arrays/0.npy"] = (tmp_path / "trap.npy").read_bytes()
    with zipfile.ZipFile(path, "w") as new:
        for name, part in parts.items():
            new.writestr(name, part)
    with pytest.raises(SaveError, match="damaged"):
        load_posterior(path)
    assert not Trap.sprung


FOREIGN = [
    "os:system",
    "builtins:eval",
    "builtins:object",
    "posix:system",
    "subprocess:Popen",
    "numpy:load",
    "jax.numpy:load",
    "jax.numpy:save",
    "jax.numpy:ndarray",
    "ssmkit.serialise:os.system",
    "ssmkit.serialise:os",
    "ssmkit.serialise:zipfile.ZipFile",
    "ssmkit.data:Path",
    "ssmkit.posterior:jax",
    "ssmkit.posterior:Path",
    "ssmkit.beliefs:TypeAlias",
    "ssmkit.posterior:Posterior.save.__globals__",
    "ssmkit_evil:run",
    "ssmkit:data",
    "optax:os.system",
    "equinox.nn._mlp:jax.devices",
    "numpyro.distributions.continuous:np.load",
]


@pytest.mark.parametrize("name", FOREIGN)
def test_crafted_names_are_refused(name, monkeypatch):
    evil = ModuleType("ssmkit_evil")
    exec("def run(*arguments): raise AssertionError", evil.__dict__)
    monkeypatch.setitem(sys.modules, "ssmkit_evil", evil)
    for node in (
        ["code", name],
        ["object", name, []],
        ["law", name, []],
        ["pytree", name, ["tuple", []], None],
        ["pytree", name, ["tuple", ["echo owned > owned"]], None],
    ):
        with pytest.raises(SaveError, match=name.split(":")[0]):
            decode(Encoded(node, {name: []}, []))


@pytest.mark.parametrize("name", ["beliefs:Gaussian", "posterior:Draws", "posterior:Posterior"])
def test_names_of_records_do_not_depend_on_the_file_they_are_written_in(name):
    found = Resolver(())(f"ssmkit.{name}")
    assert name_of(found) == f"ssmkit.{name}"
    assert Resolver(())(f"{found.__module__}:{found.__name__}") is found


@pytest.mark.parametrize(
    "node",
    [
        ["tree_", 1],
        ["once", 0],
        ["record", "a", []],
        ["jax", 0, "float64", False],
        ["list", [["tuple"]]],
        {"a": 1},
        ["object", "ssmkit.infer:infer", []],
        ["law", "ssmkit.beliefs:Gaussian", []],
        ["object", "no name", []],
        ["index", 1, ["dict", []]],
        functools.reduce(lambda inner, _: ["list", [inner]], range(5000), 1),
    ],
)
def test_made_up_trees_are_damaged_files(node):
    with pytest.raises(SaveError):
        decode(Encoded(node, {}, []))


leaves = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
keys = st.text(max_size=3) | st.integers() | st.tuples(st.integers(), st.booleans())
trees = st.recursive(
    leaves,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(keys, inner, max_size=3)
    ),
    max_leaves=12,
)


@given(trees)
def test_plain_trees_come_back(tree):
    encoded = encode(tree)
    text = json.dumps(encoded.tree, allow_nan=False)
    again = decode(Encoded(json.loads(text), encoded.classes, encoded.arrays))
    assert repr(again) == repr(tree)  # tells 1 from True, -0.0 from 0.0, and nan is like nan


class Pair(NamedTuple):
    first: object
    second: object


ARRAYS = {
    "float": np.linspace(0, 1, 6).reshape(2, 3),
    "fortran": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    "bool": np.array([True, False]),
    "dates": np.array(["2020-01-01", "NaT"], dtype="M8[D]"),
    "texts": np.array(["a", "bc"]),
    "scalar": np.float32(0.1),
    "empty": np.zeros((0, 3), np.int8),
    "jax": jnp.arange(3, dtype=jnp.int32),
    "half": jnp.array([0.5, -3.0], dtype=jnp.bfloat16),
    "complex": jnp.array([1.0 + 2.0j]),
    "nothing": jnp.array([jnp.nan, -0.0, jnp.inf]),
    "dtype": np.dtype("float32"),
    "pair": Pair(1, (np.zeros(2), None)),
    "optimiser": optax.adam(0.1).init({"a": jnp.zeros(2)}),
}


@pytest.mark.parametrize("kind", ARRAYS)
def test_arrays_keep_type_and_bits(kind):
    again = decode(encode(ARRAYS[kind]), using=[Pair])
    assert_bit_equal(ARRAYS[kind], again)
    assert type(ARRAYS[kind]) is type(again)


def test_weak_types_survive():
    weak = {"a": jnp.asarray(2.0), "b": jnp.broadcast_to(jnp.asarray(3), (2,)) * 2}
    assert all(leaf.weak_type for leaf in weak.values())
    again = decode(encode(weak))
    assert all(leaf.weak_type for leaf in again.values())
    assert_bit_equal(weak, again)
    assert not decode(encode(jnp.zeros(2))).weak_type


@pytest.mark.parametrize("name", ["threefry2x32", "rbg"])
def test_keys_go_on_with_the_same_numbers(name):
    keys = jax.random.split(jax.random.key(7, impl=name), 3)
    again = decode(encode(keys))
    assert again.dtype == keys.dtype
    assert_bit_equal(jax.random.normal(keys[1], 4), jax.random.normal(again[1], 4))


def test_an_array_is_written_once():
    array = jnp.arange(5.0)
    encoded = encode({"a": array, "b": [array, array]})
    assert len(encoded.arrays) == 1
    again = decode(encoded)
    assert again["a"] is again["b"][1]


INDEXES = {
    "months": pd.date_range("2020-01-31", periods=4, freq="ME", name="date"),
    "irregular": pd.DatetimeIndex(["2020-01-01", "2020-01-05", "2021-01-01"]),
    "zone": pd.date_range("2020-03-28", periods=4, tz="Europe/Paris"),
    "nanoseconds": pd.date_range("2020", periods=3, unit="ns"),
    "periods": pd.period_range("2020Q1", periods=4, freq="Q"),
    "spans": pd.timedelta_range("1h", periods=3, freq="h"),
    "range": pd.RangeIndex(2, 10, 3),
    "numbers": pd.Index([0.5, 2.0], name=("a", 1)),
    "texts": pd.Index(["a", "b"]),
    "levels": pd.MultiIndex.from_product([["a", "b"], [1, 2]], names=["x", None]),
}


@pytest.mark.parametrize("kind", INDEXES)
def test_indexes_come_back(kind):
    index = INDEXES[kind]
    encoded = encode(Labels(index, ("level",)))
    json.dumps(encoded.tree, allow_nan=False)
    again = decode(encoded)
    assert again == Labels(index, ("level",))
    pd.testing.assert_index_equal(again.times, index, exact=True)
    assert getattr(again.times, "freq", None) == getattr(index, "freq", None)


def test_laws_are_written_by_name_and_not_by_place(markov, monkeypatch):
    """The order of a law's fields follows the hash of texts: it differs between processes."""
    law = dist.MixtureSameFamily(
        dist.CategoricalProbs(jnp.array([0.3, 0.7])), dist.Normal(jnp.array([0.0, 5.0]), 2.0)
    )
    kept = encode((law, dist.LogNormal(1.0, 0.3), markov.model.emission_law))
    data, aux = (getattr(dist.Distribution, f"gather_pytree_{k}_fields") for k in ("data", "aux"))

    def backwards(method):
        return classmethod(lambda cls: method.__func__(cls)[::-1])

    monkeypatch.setattr(dist.Distribution, "gather_pytree_data_fields", backwards(data))
    monkeypatch.setattr(dist.Distribution, "gather_pytree_aux_fields", backwards(aux))
    mixture, lognormal, emission = decode(kept)
    x = jnp.array(1.5)
    assert float(mixture.log_prob(x)) == float(law.log_prob(x))
    assert float(lognormal.log_prob(x)) == float(dist.LogNormal(1.0, 0.3).log_prob(x))
    assert_bit_equal(emission.mean, markov.model.emission_law.mean)


def test_functions_are_found_by_name_only_where_it_is_clear(tmp_path):
    assert decode(encode([jax.nn.relu, jnp.tanh, optax.adam])) == [
        jax.nn.relu,
        jnp.tanh,
        optax.adam,
    ]

    def twice(x):
        return 2 * x

    assert decode(encode(twice), using=[twice]) is twice
    first = twice

    def twice(x):
        return 2.0 * x

    with pytest.raises(SaveError, match="same name"):
        encode([first, twice])
    with pytest.raises(SaveError, match=r"tree\['f'\]"):
        encode({"f": sk.models.LocalLevel(1.0, 1.0).emission})
    moved = Encoded(["list", [["code", "old.place:decay"]]], {}, [])
    assert decode(moved, using=[decay]) == [decay]
    both = Encoded(["list", [["code", "a:decay"], ["code", "b:decay"]]], {}, [])
    with pytest.raises(SaveError, match="needs both"):
        decode(both, using=[decay])


def test_what_is_no_data_is_refused_with_its_place():
    for thing in (np.array([object()]), {1, 2}, object(), np.ma.masked_array([1.0], [True])):
        with pytest.raises(SaveError, match=r"tree\['a'\]\[1\]"):
            encode({"a": [0, thing]})
    with pytest.raises(SaveError, match="index"):
        encode(Labels(pd.interval_range(0, 3)))


def test_double_precision_is_not_lost_silently():
    encoded = encode({"a": jnp.arange(3.0), "b": np.arange(3.0)})
    jax.config.update("jax_enable_x64", False)
    try:
        with pytest.raises(SaveError, match="jax_enable_x64"):
            decode(encoded)
    finally:
        jax.config.update("jax_enable_x64", True)
