"""The PyTorch baseline of a run: what it takes, and a small one trained and read back."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from test_session import make_session
from tiny import CLASSES

from ldm_jax.benchmark.baseline import require_comparable, train_baseline
from ldm_jax.config import DiffusionConfig, TextConditioning
from ldm_jax.errors import UserError
from ldm_jax.interop.model_files import save_model
from ldm_jax.sampling.session import load_session

pytestmark = pytest.mark.usefixtures("one_device")


def test_what_the_other_side_does_not_do_is_refused(data_cache: Path):
    experiment = make_session(data_cache, CLASSES).experiment
    require_comparable(experiment)
    text = dataclasses.replace(experiment, conditioning=TextConditioning(), diffusion=DiffusionConfig(loss="l1"))
    with pytest.raises(
        UserError, match=r"knows no conditioning=TextConditioning, diffusion\.loss=l1; it trains U-Nets"
    ):
        require_comparable(text)


@pytest.mark.slow
def test_a_baseline_is_a_run_that_draws(data_cache: Path, tmp_path: Path):
    pytest.importorskip("diffusers")
    session = make_session(data_cache, CLASSES)
    training = dataclasses.replace(session.experiment.training, num_steps=30, ema_decay=0.5)
    session = dataclasses.replace(session, experiment=dataclasses.replace(session.experiment, training=training))
    save_model(session, tmp_path / "run", "run")
    told = train_baseline(tmp_path / "run", tmp_path / "torch", 3)
    assert np.isfinite(told["loss"]) and told["seconds_per_step"] > 0
    assert json.loads((tmp_path / "torch" / "torch.json").read_text()) == told
    made = load_session(tmp_path / "torch")
    assert (made.experiment.name, made.experiment.seed) == ("smoke-torch", 3)
    inputs = made.class_inputs(["0", "1"])
    assert len(list(made.draw(inputs, 2, made.experiment.sampling, seed=0, batch_size=2))) == 2
    for name in ("autoencoder", "latent"):
        assert_equal(made.params[name], session.params[name])
    with pytest.raises(UserError, match="torch"):
        train_baseline(tmp_path / "run", tmp_path / "torch", 3)


def assert_equal(a: dict, b: dict) -> None:
    import jax

    jax.tree.map(np.testing.assert_array_equal, a, b)
