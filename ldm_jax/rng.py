"""Random numbers by name: a key is a function of the root seed, a name, a step and a sample index, never of history.

Nothing random is stored. A resumed run, another batch size or another mesh draws the same noise for the same sample,
because each sample's numbers come from its own key:

(1) key(name, step) = fold_in(fold_in(root, crc32(name)), step)
(2) key(name, step, i) = fold_in(key(name, step), i), with i the global index of the sample
"""

import zlib

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key


def root_key(seed: int) -> Key[Array, ""]:
    """The root of everything random in a run."""
    return jax.random.key(seed)


def root_keys(seeds: Int[Array, " b"]) -> Key[Array, " b"]:
    """A root of its own for each sample: the same as `root_key` of its seed."""
    return jax.vmap(jax.random.key)(seeds)


def named_key(root: Key[Array, "*roots"], name: str, step: int | Int[Array, ""] = 0) -> Key[Array, "*roots"]:
    """The key of one purpose at one step (1), of one root or of each."""
    fold_in = jax.random.fold_in if root.ndim == 0 else jax.vmap(jax.random.fold_in, in_axes=(0, None))
    return fold_in(fold_in(root, zlib.crc32(name.encode())), step)


def sample_keys(key: Key[Array, "*roots"], index: Int[Array, " b"]) -> Key[Array, " b"]:
    """One key for each sample, from its global index (2), and from its own root where there is one for each."""
    return jax.vmap(jax.random.fold_in, in_axes=(0 if key.ndim else None, 0))(key, index)


def normal(keys: Key[Array, " b"], shape: tuple[int, ...]) -> Float[Array, "b ..."]:
    """Standard normal numbers of `shape` for each sample, in float32."""
    return jax.vmap(lambda key: jax.random.normal(key, shape, jnp.float32))(keys)


def uniform(keys: Key[Array, " b"]) -> Float[Array, " b"]:
    """One number in [0, 1) for each sample, in float32."""
    return jax.vmap(lambda key: jax.random.uniform(key, (), jnp.float32))(keys)


def integers(keys: Key[Array, " b"], limit: int) -> Int[Array, " b"]:
    """One integer in [0, limit) for each sample."""
    return jax.vmap(lambda key: jax.random.randint(key, (), 0, limit))(keys)
