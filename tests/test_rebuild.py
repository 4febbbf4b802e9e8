"""Averages rebuilt from the snapshots that a loop has saved."""

import dataclasses
import logging
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from test_loop import CONFIG, Killed, Toy, assert_same, at, kill

from ldm_jax import sharding
from ldm_jax.config import MeshConfig, TrainingConfig
from ldm_jax.errors import UserError
from ldm_jax.training.checkpoints import abstract_like
from ldm_jax.training.rebuild import rebuild_average
from ldm_jax.training.run_folder import RunFolder
from ldm_jax.training.state import TrainState

pytestmark = pytest.mark.slow  # kills, crashes and whole runs

WITH_PROFILES = dataclasses.replace(CONFIG, num_steps=12, ema_profiles=(0.05, 0.1), snapshot_every=3)


@pytest.fixture
def toy(tmp_path: Path) -> Toy:
    return Toy(tmp_path / "run", sharding.make_mesh(MeshConfig(), jax.devices()[:1]), WITH_PROFILES)


def rebuilt(toy: Toy, state: TrainState, sigma_rel: float, end: int = 99, config: TrainingConfig | None = None) -> Any:
    mesh = sharding.make_mesh(MeshConfig(), jax.devices()[:2])
    model = abstract_like(state.model_params, sharding.state_shardings(mesh, state.model_params))
    snapshots = RunFolder(toy.path).snapshots("toy")
    return rebuild_average(snapshots, config or WITH_PROFILES, model, sigma_rel, end)


def test_a_width_that_was_kept_comes_back(toy: Toy):
    state = toy.run()
    assert RunFolder(toy.path).snapshots("toy").steps() == [3, 6, 9, 12]
    for i, width in enumerate(WITH_PROFILES.ema_profiles):
        found, kept = rebuilt(toy, state, width), state.profiles[f"profile_{i}"]
        assert set(found) == {"layer"}
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), found, kept)
    wide = rebuilt(toy, state, 0.15)["layer"]["w"]
    assert not np.allclose(wide, state.profiles["profile_1"]["layer"]["w"], rtol=1e-3)


@pytest.mark.parametrize("killed_at", [4, 7])
def test_a_killed_run_keeps_the_same_averages(toy: Toy, tmp_path: Path, killed_at: int):
    whole = toy.run()
    other = dataclasses.replace(toy, path=tmp_path / "other", change=at(killed_at, kill))
    with pytest.raises(Killed):
        other.run()
    other.change = toy.change
    assert_same(other.run(), whole)
    assert_same(*(rebuilt(t, whole, 0.07) for t in (toy, other)))


def test_what_cannot_be_rebuilt_is_refused(toy: Toy, caplog: pytest.LogCaptureFixture):
    state = toy.run()
    snapshots = RunFolder(toy.path).snapshots("toy")
    with pytest.raises(UserError, match=r"--ema-sigma-rel=0\.3 must be from 0\.01 to 0\.28"):
        rebuilt(toy, state, 0.3)
    with pytest.raises(
        UserError, match="has kept no averages from which others could be rebuilt; train with --training"
    ):
        rebuilt(toy, state, 0.1, config=CONFIG)
    with pytest.raises(UserError, match=r"has no snapshot up to step 2; one is saved every training\.snapshot_every"):
        rebuilt(toy, state, 0.1, end=2)
    next(path for path in Path(str(snapshots.folder(12))).rglob("*") if path.is_file()).write_bytes(b"damaged")
    with caplog.at_level(logging.INFO):
        rebuilt(toy, state, 0.1)
    assert "it is left out" in caplog.text
    assert "the average of sigma_rel=0.1 at step 9 is made of 3 snapshots; its profile is off by" in caplog.text
    rebuilt(toy, state, 0.28)
    assert "sigma_rel=0.28 is not what these snapshots are for: use a width nearer to those kept" in caplog.text


def test_widths_are_checked():
    with pytest.raises(UserError, match=r"TrainingConfig.ema_profiles=0\.5 must lie between 0\.01 and 0\.28"):
        TrainingConfig(ema_profiles=(0.05, 0.5))
    with pytest.raises(UserError, match=r"TrainingConfig.ema_profiles=\(0\.1, 0\.1\) names a width twice"):
        TrainingConfig(ema_profiles=(0.1, 0.1))
