"""A film of an object that goes round, and round again behind a screen; and a decoder of stills."""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax

SIDE, NOISE, SPOT = 16, 0.3, 2.0  # pixels, standard deviation of a pixel, size of the object
SCREEN, GREY = 9, 0.3  # the first column that the screen hides, and its shade
ROUND, UNEVEN, RADIUS = 40, 0.3, 5.0  # frames of a round, how much its speed varies, pixels
WOBBLE, DRIFT = 0.04, 0.2  # standard deviations of a step: of the angle, and of the radius
HIDDEN = SCREEN - 0.5 + 1.5 * SPOT  # beyond this column less than 7 % of the object is seen
WEAK = 10.0  # the prior's weight when the coder begins, so that its map of places does not tear
COVERED = np.broadcast_to(np.arange(SIDE) >= SCREEN, (SIDE, SIDE)).ravel()


def render(places: np.ndarray) -> np.ndarray:
    """Frames ``(…, SIDE * SIDE)`` of an object at places ``(…, 2)``: no noise, no screen."""
    rows, columns = np.mgrid[:SIDE, :SIDE]
    down, across = places[..., 0, None, None], places[..., 1, None, None]
    frames = np.exp(-0.5 * ((rows - down) ** 2 + (columns - across) ** 2) / SPOT**2)
    return frames.reshape(*places.shape[:-1], -1)


def screened(frames: Any) -> Any:
    """Frames with the screen in front."""
    where = jnp.where if isinstance(frames, jax.Array) else np.where
    return where(COVERED, GREY, frames)


class Film(NamedTuple):
    """What is filmed.

    Attributes:
        angles: by time.
        radii: by time.
        frames: as they are seen.
    """

    angles: np.ndarray
    radii: np.ndarray
    frames: np.ndarray

    @property
    def places(self) -> np.ndarray:
        """Row and column of the object, by time."""
        return places(self.angles, self.radii)

    @property
    def log_densities(self) -> np.ndarray:
        """Of each frame in nats, where the object is: what no score beats in the mean."""
        error = (self.frames - screened(render(self.places))) / NOISE
        return np.sum(-0.5 * error**2 - np.log(NOISE) - 0.5 * np.log(2 * np.pi), axis=1)


def places(angles: np.ndarray, radii: np.ndarray) -> np.ndarray:
    """Row and column at these angles."""
    turned = np.stack([np.sin(angles), np.cos(angles)], axis=-1)
    return (SIDE - 1) / 2 + radii[..., None] * turned


def go_round(random: Any, angle: Any, radius: Any, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Angles and radii after ``1 … length`` steps, of one object or of many."""
    angles, radii = [], []
    for _ in range(length):
        turn = 2 * np.pi / ROUND * (1 + UNEVEN * np.sin(angle))
        angle = angle + turn + WOBBLE * random.normal(size=np.shape(angle))
        radius = RADIUS + 0.7 * (radius - RADIUS) + DRIFT * random.normal(size=np.shape(radius))
        angles.append(angle)
        radii.append(radius)
    return np.array(angles), np.array(radii)


def shoot(random: Any, length: int) -> Film:
    """A film that begins anywhere."""
    start = np.asarray(random.uniform(0, 2 * np.pi))
    angles, radii = go_round(random, start, np.asarray(RADIUS), length)
    frames = screened(render(places(angles, radii)))
    return Film(angles, radii, frames + NOISE * random.normal(size=frames.shape))


def stills(random: Any, count: int) -> np.ndarray:
    """Single frames without a screen, in no order, of the object anywhere."""
    frames = render(random.uniform(1.5, SIDE - 2.5, (count, 2)))
    return frames + NOISE * random.normal(size=frames.shape)


class Coder(NamedTuple):
    """Both halves of a variational autoencoder of single frames."""

    encoder: eqx.nn.MLP
    decoder: eqx.nn.MLP


def misfit(coder: Coder, key: Any, frames: Any, weight: Any) -> Any:
    """The negative lower bound, up to a constant, with a weight on the prior's part."""
    mean, log_scale = jnp.split(jax.vmap(coder.encoder)(frames), 2, axis=1)
    z = mean + jnp.exp(log_scale) * jax.random.normal(key, mean.shape)
    error = jnp.sum((jax.vmap(coder.decoder)(z) - frames) ** 2, axis=1) / (2 * NOISE**2)
    prior = 0.5 * jnp.sum(mean**2 + jnp.exp(2 * log_scale) - 1 - 2 * log_scale, axis=1)
    return jnp.mean(error + weight * prior)


def train_decoder(key: Any, frames: Any, latent: int, steps: int, width: int = 128) -> eqx.nn.MLP:
    """A decoder of single frames."""
    first, second, train = jax.random.split(key, 3)
    coder = Coder(
        eqx.nn.MLP(SIDE**2, 2 * latent, width, 2, jnp.tanh, key=first),
        eqx.nn.MLP(latent, SIDE**2, width, 2, jnp.tanh, key=second),
    )
    arrays, static = eqx.partition(coder, eqx.is_inexact_array)
    rule = optax.adam(optax.cosine_decay_schedule(3e-3, steps, 0.01))

    def loss(arrays: Any, key: Any, weight: Any) -> Any:
        rows_key, noise_key = jax.random.split(key)
        batch = frames[jax.random.randint(rows_key, (64,), 0, len(frames))]
        return misfit(eqx.combine(arrays, static), noise_key, batch, weight)

    def step(carry: Any, now: Any) -> tuple[Any, None]:
        arrays, state = carry
        change, state = rule.update(jax.grad(loss)(arrays, *now), state)
        return (optax.apply_updates(arrays, change), state), None

    weights = jnp.maximum(1.0, WEAK * (1 - 2 * jnp.arange(steps) / steps))
    nows = (jax.random.split(train, steps), weights)
    run = jax.jit(lambda carry: jax.lax.scan(step, carry, nows)[0][0])
    return eqx.combine(run((arrays, rule.init(arrays))), static).decoder
