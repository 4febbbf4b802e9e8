"""The step of a stage on a mesh, and its arguments as shapes, types and shardings: what training compiles, abstract."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from ldm_jax import rng, sharding
from ldm_jax.config import Experiment, SamplingConfig
from ldm_jax.diffusion.samplers import make_sampler
from ldm_jax.model import LatentDiffusion, make_model, require_diffusion_of_pictures
from ldm_jax.planning.request import StageName, training_of
from ldm_jax.sampling.batches import guidance_numbers
from ldm_jax.sampling.generate import Method, Request, make_generate
from ldm_jax.training.program import StageProgram, autoencoder_program, diffusion_program, jit_step


class AbstractStep(NamedTuple):
    """A compiled function that has not been compiled yet."""

    function: Any
    """Result of `jax.jit`."""
    arguments: tuple[Any, ...]
    """Trees of `jax.ShapeDtypeStruct` with shardings; without one what is the same everywhere, as in training."""
    num_parameters: int
    """Parameters of what the step trains, or of what it samples from."""


def abstract_step(experiment: Experiment, stage: StageName, mesh: Mesh) -> AbstractStep:
    """The step of a stage; nothing is allocated, and no data is needed.

    Raises:
        UserError: the batch cannot be split over the mesh, or the model does not make pictures.
    """
    model, training = make_model(experiment, mesh), training_of(experiment, stage)
    if stage == "sampling":
        require_diffusion_of_pictures(experiment)
        return _sampling_step(experiment, model, training.batch_size, mesh)
    sharding.check_batch_size(f"{stage} training", training.batch_size, training.gradient_accumulation, mesh)
    if stage == "autoencoder":
        batch = {"image": _array(training.batch_size, *model.image_shape)}
        return _training_step(autoencoder_program(model, experiment, mesh), {}, batch, mesh)
    require_diffusion_of_pictures(experiment)
    program = diffusion_program(model, experiment, mesh)
    return _training_step(program, _frozen(experiment, model), _latent_batch(model, training.batch_size), mesh)


def _training_step(program: StageProgram, frozen: Any, batch: dict[str, Any], mesh: Mesh) -> AbstractStep:
    root = jax.eval_shape(lambda: rng.root_key(0))
    state = jax.eval_shape(program.init, root, frozen, {})._replace(constants=program.constants)
    shardings = sharding.state_shardings(mesh, state)
    size = jax.tree.leaves(batch)[0].shape[0]
    batch = {**batch, "sample_index": jax.ShapeDtypeStruct((size,), jnp.int32)}
    arguments = (
        jax.tree.map(_placed, state, shardings),
        jax.tree.map(lambda leaf: _placed(leaf, sharding.batch_sharding(mesh)), batch),
        root,
    )
    return AbstractStep(jit_step(program.step, shardings, mesh), arguments, _size(state.params))


def _sampling_step(experiment: Experiment, model: LatentDiffusion, batch_size: int, mesh: Mesh) -> AbstractStep:
    """A batch of pictures as `ldm sample` draws it: parameters whole on every device, samples split."""
    sharding.check_batch_size("sampling", batch_size, 1, mesh)
    config = experiment.sampling
    sampler = make_sampler(config, model.schedule, experiment.diffusion.prediction_type)
    params = jax.eval_shape(model.init, jax.eval_shape(lambda: rng.root_key(0)))
    request = jax.eval_shape(lambda: _request(model, config, batch_size))
    split = (request, *(jax.ShapeDtypeStruct((batch_size,), jnp.int32) for _ in ("seeds", "index")))
    everywhere, batch = sharding.replicated(mesh), sharding.batch_sharding(mesh)
    params = jax.tree.map(lambda leaf: _placed(leaf, everywhere), params)
    arguments = (params, None, sampler, *jax.tree.map(lambda leaf: _placed(leaf, batch), split))
    guided = config.guidance_scale != 1.0 and bool(request.inputs)
    generate = make_generate(model, Method(guided=guided, calls=config.guidance_calls))
    return AbstractStep(generate, arguments, _size(params))


def _request(model: LatentDiffusion, config: SamplingConfig, batch_size: int) -> Request:
    """Of pictures about which nothing is said, as large as any other."""
    inputs, negative = model.null_inputs(batch_size), model.conditioner.null_inputs(batch_size)
    return Request(inputs, negative, guidance_numbers(config, [config.guidance_scale] * batch_size))


def _frozen(experiment: Experiment, model: LatentDiffusion) -> Any:
    """Parameters that the second stage holds and does not train, as `ldm_jax.experiment` divides them."""
    params = jax.eval_shape(model.init, jax.eval_shape(lambda: rng.root_key(0)))
    fixed = {"autoencoder", "latent"}
    if not getattr(experiment.conditioning, "trainable", True):
        fixed.add("conditioner")
    return {name: value for name, value in params.items() if name in fixed}


def _latent_batch(model: LatentDiffusion, batch_size: int) -> dict[str, Any]:
    inputs = jax.eval_shape(lambda: model.null_inputs(batch_size))
    *spatial, channels = model.latent_shape
    return {"moments": _array(batch_size, *spatial, 2 * channels), **inputs}


def _array(*shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def _placed(leaf: Any, placement: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=placement)


def _size(params: Any) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(params))
