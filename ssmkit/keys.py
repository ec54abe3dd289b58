"""Random keys: one purpose, one key.

``split(k, n)[i]`` and ``fold_in(k, i)`` are the same key, and ``split(k, n)`` is a prefix of
``split(k, n + 1)``; so a key is either split or folded, once, and every purpose first gets a key
of its own by a fixed tag.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from ssmkit.errors import RandomKeyError
from ssmkit.typing import Key

# Fixed for ever: a saved run goes on with the same numbers only if these stay.
PURPOSES = {
    "time": 1,
    "learning": 2,
    "forecasting": 3,
    "states": 4,
    "restarts": 5,
    "simulation": 6,
    "draws": 7,
    "diagnosis": 8,
    "alarm": 9,
    "replicates": 10,
    "renewal": 11,
    "smoothing": 12,
}


def purpose(key: Key, name: str) -> Key:
    """Return the key for one purpose, ``fold_in(key, PURPOSES[name])``."""
    return jax.random.fold_in(key, PURPOSES[name])


def as_key(key: Key | int) -> Key:
    """Accept a typed key or an integer seed; refuse everything else by name.

    Raises:
        RandomKeyError: for old-style ``uint32`` keys, batches of keys and anything else.
    """
    fix = "jax.random.key(0)"
    if isinstance(key, int) and not isinstance(key, bool):
        return jax.random.key(key)
    if isinstance(key, jax.Array) and jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        if key.shape == ():
            return key
        raise RandomKeyError(
            "key holds several keys.", got=f"shape {key.shape}", expected="one key", fix="key[0]"
        )
    if isinstance(key, jax.Array) and key.dtype == jnp.uint32:
        raise RandomKeyError(
            "key is an old-style key.",
            got=f"{key.dtype} array of shape {key.shape}",
            expected="a typed key",
            fix="jax.random.wrap_key_data(key), or " + fix,
        )
    raise RandomKeyError(
        "the first argument must be a random key.",
        got=f"{type(key).__name__}",
        expected="a typed key, or an integer seed",
        fix=fix,
    )
