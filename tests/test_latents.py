"""Latents for the second stage: their statistics, and that a cache changes nothing but the speed."""

import dataclasses
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import one_device_mesh, random_params, tiny_experiment

from ldm_jax.errors import UserError
from ldm_jax.model import Params, make_model
from ldm_jax.training import latents
from ldm_jax.training.latents import LatentReader, latent_statistics, parameter_fingerprint
from ldm_jax.training.workspace import Workspace, open_workspace


def moments_of(mean: np.ndarray, std: np.ndarray) -> np.ndarray:
    return np.concatenate([mean, 2 * np.log(std)], axis=-1).astype(np.float32)


def random_moments(size: int = 40) -> np.ndarray:
    numbers = np.random.default_rng(0)
    mean = numbers.normal(size=(size, 4, 4, 2)) * [1.0, 3.0] + [2.0, -1.0]
    return moments_of(mean, numbers.uniform(0.1, 1.0, (size, 4, 4, 2)))


def test_the_statistics_are_those_of_drawn_samples():
    moments = random_moments()
    mean, logvar = np.split(moments.astype(np.float64), 2, axis=-1)
    noise = np.random.default_rng(1).normal(size=(200, *mean.shape))
    drawn = mean + np.exp(0.5 * logvar) * noise
    each = latent_statistics([moments], "per_channel")["latent"]
    np.testing.assert_allclose(each["mean"], drawn.mean(axis=(0, 1, 2, 3)), atol=0.01)
    np.testing.assert_allclose(each["std"], drawn.std(axis=(0, 1, 2, 3)), rtol=0.01)
    one = latent_statistics([moments], "global")["latent"]
    np.testing.assert_array_equal(one["mean"], [0, 0])
    np.testing.assert_allclose(one["std"], [drawn.std()] * 2, rtol=0.01)
    assert {a.dtype for a in (*each.values(), *one.values())} == {np.dtype(np.float32)}


@settings(max_examples=20)
@given(st.integers(1, 40))
def test_they_do_not_depend_on_how_the_set_is_cut(cut: int):
    moments = random_moments()
    parts = [moments[begin : begin + cut] for begin in range(0, len(moments), cut)]
    whole, parted = (latent_statistics(m, "per_channel")["latent"] for m in ([moments], parts))
    for name in ("mean", "std"):
        np.testing.assert_allclose(parted[name], whole[name], rtol=1e-6)


def test_mirror_images_count_as_pictures_of_their_own():
    flips = random_moments().reshape(20, 2, 4, 4, 4)
    one, other = (latent_statistics([m], "global")["latent"] for m in (flips, flips.reshape(40, 4, 4, 4)))
    np.testing.assert_array_equal(one["std"], other["std"])


def test_a_posterior_without_spread_is_a_point():
    mean = np.random.default_rng(0).normal(size=(30, 4, 4, 2))
    moments = np.concatenate([mean, np.full_like(mean, -np.inf)], axis=-1).astype(np.float32)
    found = latent_statistics([moments], "per_channel")["latent"]
    np.testing.assert_allclose(found["std"], mean.std(axis=(0, 1, 2)), rtol=1e-5)


def constant(channel: np.ndarray) -> None:
    channel[...] = 0.25


def broken(channel: np.ndarray) -> None:
    channel[0, 0, 0] = np.nan


@pytest.mark.parametrize("scale", ["global", "per_channel"])
@pytest.mark.parametrize("spoil", [constant, broken])
def test_a_collapsed_first_stage_is_noticed(spoil: Callable[[np.ndarray], None], scale):
    mean = np.random.default_rng(0).normal(size=(8, 4, 4, 2))
    for channel in (0, 1) if scale == "global" else (1,):
        spoil(mean[..., channel])
    message = r"the latents have spread \[.*\]: the first stage has collapsed; train it longer or otherwise"
    with pytest.raises(UserError, match=message):
        latent_statistics([moments_of(mean, np.full_like(mean, 1e-9))], scale)


def test_a_fingerprint_tells_values_shapes_types_and_names():
    base = {"a": {"w": np.arange(4, dtype=np.float32)}}
    others = [
        {"a": {"w": np.asarray([0, 1, 2, 4], np.float32)}},
        {"a": {"w": np.arange(4, dtype=np.float32).reshape(2, 2)}},
        {"a": {"w": np.arange(4, dtype=np.float32).view(np.int32)}},
        {"b": {"w": np.arange(4, dtype=np.float32)}},
    ]
    assert parameter_fingerprint(base) == parameter_fingerprint({"a": {"w": jnp.arange(4.0)}})
    assert len({parameter_fingerprint(tree) for tree in (base, *others)}) == 5


@pytest.fixture(scope="module")
def cached(data_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """A workspace that caches latents."""
    work = open_workspace(tiny_experiment(data_cache), tmp_path_factory.mktemp("runs") / "run")
    mesh = one_device_mesh()
    return dataclasses.replace(work, mesh=mesh, model=make_model(work.experiment, mesh))


@pytest.fixture(scope="module")
def uncached(cached: Workspace) -> Workspace:
    """The same without a cache."""
    data = dataclasses.replace(cached.experiment.data, cache_latents=False)
    return dataclasses.replace(cached, experiment=dataclasses.replace(cached.experiment, data=data))


@pytest.fixture(scope="module")
def autoencoder(cached: Workspace) -> Params:
    return {"autoencoder": random_params(cached.model)["autoencoder"]}


@pytest.fixture(scope="module")
def readers(cached: Workspace, uncached: Workspace, autoencoder: Params) -> tuple[LatentReader, LatentReader]:
    return LatentReader(cached, autoencoder), LatentReader(uncached, autoencoder)


def first(batches: Iterator[Any], count: int) -> list[Any]:
    return [next(batches) for _ in range(count)]


def test_statistics_are_the_same_with_and_without_a_cache(readers: tuple[LatentReader, LatentReader]):
    one, other = (reader.statistics()["latent"] for reader in readers)
    np.testing.assert_allclose(one["mean"], other["mean"], rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(one["std"], other["std"], rtol=1e-4)


def test_training_batches_are_the_same_with_and_without_a_cache(readers: tuple[LatentReader, LatentReader]):
    for one, other in zip(*(first(reader.train_batches(2), 2) for reader in readers), strict=True):
        assert set(one) == set(other) - {"image"}
        np.testing.assert_allclose(one["moments"], other["moments"], rtol=1e-4, atol=1e-5)
        for name in set(one) - {"moments"}:
            np.testing.assert_array_equal(one[name], other[name])


def test_training_batches_of_a_step_do_not_depend_on_where_reading_began(readers: tuple[LatentReader, LatentReader]):
    late, early = first(readers[0].train_batches(3), 1)[0], first(readers[0].train_batches(0), 4)[3]
    jax.tree.map(np.testing.assert_array_equal, late, early)


def test_heldout_batches_are_the_same_with_and_without_a_cache(
    cached: Workspace, readers: tuple[LatentReader, LatentReader]
):
    ones, others = (list(reader.heldout_batches(8)) for reader in readers)
    assert sum(int(np.sum(batch["valid"])) for batch in ones) == len(cached.test)
    for one, other in zip(ones, others, strict=True):
        np.testing.assert_allclose(one["moments"], other["moments"], rtol=1e-4, atol=1e-5)
        np.testing.assert_array_equal(one["valid"], other["valid"])


def test_a_cache_is_made_once_and_again_for_another_autoencoder(
    cached: Workspace, autoencoder: Params, caplog: pytest.LogCaptureFixture, readers: object
):
    with caplog.at_level(logging.INFO):
        LatentReader(cached, autoencoder)
    assert "encoding" not in caplog.text
    other = jax.tree.map(lambda x: x + 0.01, autoencoder)
    with caplog.at_level(logging.INFO):
        LatentReader(cached, other)
    assert caplog.text.count("encoding") == 2
    LatentReader(cached, autoencoder)  # for the tests that come after


def test_a_large_set_is_measured_by_its_first_pictures(
    uncached: Workspace, autoencoder: Params, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    monkeypatch.setattr(latents, "STATISTICS_PICTURES", 9)
    positions = int(np.prod(uncached.model.latent_shape[:-1]))
    with caplog.at_level(logging.INFO):
        LatentReader(uncached, autoencoder).statistics()
    assert f"latents of {16 * positions} positions" in caplog.text  # two batches of 8
