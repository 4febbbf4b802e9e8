"""Batches of pictures: a model laid out on the devices, drawing as many at once as it is told."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float, Int, UInt8

from ldm_jax import sharding
from ldm_jax.config import SamplingConfig
from ldm_jax.diffusion.guidance import Guidance
from ldm_jax.diffusion.samplers import Sampler
from ldm_jax.errors import UserError
from ldm_jax.model import LatentDiffusion, Params
from ldm_jax.pictures import to_uint8
from ldm_jax.sampling.generate import Method, Request, make_generate
from ldm_jax.sampling.tasks.program import TaskArrays, TaskSamplers, make_task
from ldm_jax.sampling.tasks.task import TaskKind


class WeakerModel(NamedTuple):
    """The model from which autoguidance leads away."""

    model: LatentDiffusion
    params: Params


class TaskBatch(NamedTuple):
    """Pictures made from pictures, as `Made` holds them."""

    images: UInt8[np.ndarray, "b h w c"]
    latent_error: Float[np.ndarray, " b"]
    reconstruction: UInt8[np.ndarray, "b h w c"] | None


class BatchDrawer:
    """Draws batches with one model and one sampler on all devices."""

    def __init__(
        self,
        model: LatentDiffusion,
        params: Params,
        sampler: Sampler,
        config: SamplingConfig,
        mesh: Mesh,
        weaker: WeakerModel | None = None,
    ) -> None:
        """Lay the parameters out on a mesh; `config` is what `sampler` was made from."""
        self._model, self._sampler, self._config = model, sampler, config
        self.mesh = mesh
        self._params = sharding.place(mesh, params)
        self._weaker = None if weaker is None else sharding.place(mesh, weaker.params)

    @property
    def params(self) -> Params:
        """The parameters as they lie on the devices."""
        return self._params

    def batch_size(self, wanted: int, count: int) -> int:
        """Pictures in a batch where `wanted` may be drawn at once and there are `count`, split evenly."""
        shards = sharding.num_batch_shards(self.mesh)
        return -(-min(wanted, count) // shards) * shards

    def draw(
        self, request: Request, method: Method, seeds: Int[np.ndarray, " b"], index: Int[np.ndarray, " b"]
    ) -> UInt8[np.ndarray, "b h w c"]:
        """Draw one batch of a size that `batch_size` has told.

        Raises:
            UserError: the pictures are not finite numbers.
        """
        batch = (request, seeds.astype(np.int32), index.astype(np.int32))
        request, *noise = sharding.place_batch(self.mesh, batch)
        generate = make_generate(self._model, method)
        images = sharding.to_host(generate(self._params, self._weaker, self._sampler, request, *noise))
        return self._finite(images, request)

    def draw_task(
        self,
        request: Request,
        method: Method,
        kind: TaskKind,
        samplers: TaskSamplers,
        task: TaskArrays,
        seeds: Int[np.ndarray, " b"],
        index: Int[np.ndarray, " b"],
    ) -> TaskBatch:
        """As `draw`, from pictures; `method.latent_shape` is not looked at.

        Raises:
            UserError: the pictures are not finite numbers.
        """
        batch = (request, task, seeds.astype(np.int32), index.astype(np.int32))
        request, *rest = sharding.place_batch(self.mesh, batch)
        made = make_task(self._model, method, kind)(self._params, self._weaker, samplers, request, *rest)
        images, error, same = jax.tree.map(sharding.to_host, tuple(made))
        return TaskBatch(self._finite(images, request), error, None if same is None else to_uint8(same))

    def _finite(self, images: Float[np.ndarray, "b h w c"], request: Request) -> UInt8[np.ndarray, "b h w c"]:
        if not np.isfinite(images).all():
            scale = float(np.max(sharding.to_host(request.guidance.scale)))
            raise UserError(
                f"sampler={self._config.sampler} with {self._config.num_sample_steps} steps and guidance_scale="
                f"{scale} leaves numbers that are not finite; use another sampler, more steps or less guidance"
            )
        return to_uint8(images)


def guidance_numbers(config: SamplingConfig, scales: Sequence[float]) -> Guidance:
    """The numbers of a batch's guidance, one for each sample."""
    low, high = config.guidance_interval or (0.0, np.inf)
    rest = (jnp.full(len(scales), value, jnp.float32) for value in (config.guidance_rescale, low, high))
    return Guidance(jnp.asarray(scales, jnp.float32), *rest)
