"""Generation: a picture is a function of its seed and index, and new numbers do not compile anew."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import random_params, tiny_experiment

from ldm_jax import sharding
from ldm_jax.config import Experiment, MeshConfig, SamplingConfig
from ldm_jax.diffusion.samplers import make_sampler
from ldm_jax.model import LatentDiffusion, Params, make_model
from ldm_jax.sampling.batches import guidance_numbers
from ldm_jax.sampling.generate import Method, Request, make_generate

BATCH = 3


@dataclasses.dataclass
class Trial:
    """A model, and what it is asked for unless a test asks otherwise."""

    experiment: Experiment
    model: LatentDiffusion
    params: Params
    generate: Callable[..., jax.Array]
    traces: list[int]

    def draw(
        self,
        *,
        tokens: Any = None,
        index: Any = (0, 1, 2),
        seed: int = 0,
        scale: float = 2.0,
        config: SamplingConfig | None = None,
        generate: Callable[..., jax.Array] | None = None,
    ) -> np.ndarray:
        config = SamplingConfig(num_sample_steps=3) if config is None else config
        sampler = make_sampler(config, self.model.schedule, self.experiment.diffusion.prediction_type)
        null = self.model.conditioner.null_inputs(len(index))
        inputs = {"tokens": jnp.full_like(null["tokens"], 7) if tokens is None else jnp.asarray(tokens, jnp.int32)}
        return np.asarray(
            (self.generate if generate is None else generate)(
                self.params,
                None,
                sampler,
                Request(inputs, null, guidance_numbers(config, [scale] * len(index))),
                jnp.full(len(index), seed, jnp.int32),
                jnp.asarray(index, jnp.int32),
            )
        )


@pytest.fixture(scope="module")
def trial(data_cache: Path) -> Trial:
    experiment = tiny_experiment(data_cache)
    model = make_model(experiment)
    traces: list[int] = []

    class Counted(LatentDiffusion):
        """Counts how often the decoder is traced: once in each program."""

        def decode(self, params: Params, z0: jax.Array) -> jax.Array:
            traces.append(1)
            return super().decode(params, z0)

    counted = Counted(**{field.name: getattr(model, field.name) for field in dataclasses.fields(model)})
    return Trial(experiment, model, random_params(model), make_generate(counted, Method()), traces)


def test_pictures_have_the_shape_of_the_data(trial: Trial):
    pictures = trial.draw()
    assert pictures.shape == (BATCH, *trial.model.image_shape)
    assert np.isfinite(pictures).all()


def test_a_picture_depends_on_its_index_and_not_on_its_neighbours(trial: Trial):
    one, other = trial.draw(index=(0, 1, 2)), trial.draw(index=(2, 7, 0))
    np.testing.assert_allclose(other[[2, 0]], one[[0, 2]], atol=1e-5)
    assert np.abs(other[1] - one).max() > 1e-3


def test_another_batch_size_draws_the_same_picture(trial: Trial):
    np.testing.assert_allclose(trial.draw(index=(1, 2)), trial.draw(index=(0, 1, 2))[1:], atol=1e-5)


@pytest.mark.slow
def test_eight_devices_draw_the_same_pictures(trial: Trial):
    config, count = SamplingConfig(num_sample_steps=3), 8
    sampler = make_sampler(config, trial.model.schedule, trial.experiment.diffusion.prediction_type)
    drawn = []
    for devices in (1, count):
        mesh = sharding.make_mesh(MeshConfig(), jax.devices()[:devices])
        model = make_model(trial.experiment, mesh)
        null = model.conditioner.null_inputs(count)
        request = Request({"tokens": jnp.full_like(null["tokens"], 7)}, null, guidance_numbers(config, [2.0] * count))
        batch = sharding.place_batch(mesh, (request, np.zeros(count, np.int32), np.arange(count, dtype=np.int32)))
        generate = make_generate(model, Method())
        drawn.append(np.asarray(generate(sharding.place(mesh, trial.params), None, sampler, *batch)))
    np.testing.assert_allclose(drawn[1], drawn[0], atol=1e-5)


def test_seed_prompt_and_scale_matter(trial: Trial):
    base = trial.draw()
    assert np.abs(trial.draw(seed=1) - base).max() > 1e-3
    assert np.abs(trial.draw(scale=0.5) - base).max() > 1e-4
    tokens = np.full((BATCH, 8), 9)
    assert np.abs(trial.draw(tokens=tokens) - base).max() > 1e-4


def test_a_prompt_matters_to_its_own_picture_alone(trial: Trial):
    tokens = np.full((BATCH, 8), 7)
    tokens[1] = 9
    change = np.abs(trial.draw(tokens=tokens) - trial.draw()).max(axis=(1, 2, 3))
    assert change[1] > 1e-4
    assert change[[0, 2]].max() < 1e-5


def test_new_prompts_seeds_scales_and_schedules_do_not_compile_anew(trial: Trial):
    trial.draw()
    before = len(trial.traces)
    trial.draw(seed=5, scale=7.5, tokens=np.full((BATCH, 8), 11), index=(4, 5, 6))
    trial.draw(config=SamplingConfig(num_sample_steps=3, guidance_rescale=0.7, guidance_interval=(0.1, 5.0)))
    assert len(trial.traces) == before
    trial.draw(config=SamplingConfig(num_sample_steps=2))  # another length is another program
    assert len(trial.traces) == before + 1


def test_without_guidance_the_conditional_prediction_is_taken_alone(trial: Trial):
    plain = make_generate(trial.model, Method(guided=False))
    np.testing.assert_allclose(trial.draw(generate=plain, scale=99.0), trial.draw(scale=1.0), atol=1e-5)


def test_fresh_noise_on_the_way_belongs_to_the_sample_too(trial: Trial):
    config = SamplingConfig(num_sample_steps=3, eta=1.0)
    one, other = trial.draw(config=config), trial.draw(config=config, index=(2, 1, 0))
    np.testing.assert_allclose(other[::-1], one, atol=1e-5)
    assert np.abs(one - trial.draw()).max() > 1e-3
