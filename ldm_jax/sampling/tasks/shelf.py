"""The pictures of a request's tasks, each read once, and what the program of its task takes."""

import dataclasses
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import UInt8

from ldm_jax.conditioning.conditions import Inputs
from ldm_jax.config import MaskedPicture
from ldm_jax.data.given.files import to_float
from ldm_jax.data.given.given import Arrays
from ldm_jax.data.given.masked_picture import GivenMaskedPicture
from ldm_jax.diffusion.samplers import Sampler, make_inversion
from ldm_jax.errors import UserError
from ldm_jax.model import Params
from ldm_jax.sampling.batches import TaskBatch
from ldm_jax.sampling.request import DrawRequest, PictureRequest
from ldm_jax.sampling.session import Session
from ldm_jax.sampling.sizes import picture_size
from ldm_jax.sampling.tasks.denoising import denoising_sampler, latent_noise, num_steps_from, timestep_of
from ldm_jax.sampling.tasks.image_to_image import num_skipped
from ldm_jax.sampling.tasks.inpainting import latent_hole, paste
from ldm_jax.sampling.tasks.inversion import report
from ldm_jax.sampling.tasks.pictures import TaskPictures, read_pictures
from ldm_jax.sampling.tasks.program import TaskArrays, TaskSamplers
from ldm_jax.sampling.tasks.task import PictureTask


class TaskShelf:
    """What the tasks of a request need: files, samplers."""

    def __init__(self, session: Session, request: DrawRequest) -> None:
        """Read all files and make the samplers that do not depend on them.

        Raises:
            UserError: a file is not what it has to be or has changed, or the sampler does not fit the task.
        """
        self._session, self._config = session, request.config
        self._pictures: dict[PictureTask, TaskPictures] = {}
        self._samplers: dict[PictureTask, TaskSamplers] = {}
        self._notes: dict[PictureTask, str] = {}
        channels = session.model.image_shape[-1]
        for picture in request.pictures:
            task = picture.task
            if task is None or task in self._pictures:
                continue
            found = read_pictures(task, picture_size(session, picture), channels)
            if found.checksum() != task.sha256:
                raise UserError(f"{task.words()}: a file of it has changed since the picture was asked for; restore it")
            self._pictures[task] = found
            if task.kind == "denoise":
                self._check_denoising()
            else:
                self._samplers[task] = self._make_samplers(task)

    def shown(self, task: PictureTask) -> UInt8[np.ndarray, "h w 3"]:
        """The picture of a task, with grey holes."""
        return self._pictures[task].shown()

    def told(self, task: PictureTask) -> Arrays:
        """What a task tells a model of pictures with holes; nothing where there is no hole, or to another model."""
        found, given = self._pictures[task], self._session.experiment.given
        if not isinstance(given, MaskedPicture) or found.hole is None:
            return {}
        maker = self._session.given.given
        assert isinstance(maker, GivenMaskedPicture)  # as the configuration says
        return maker.masked(to_float(found.image), found.hole)

    def samplers(self, task: PictureTask, params: Params) -> TaskSamplers:
        """Ways between noise and latent; of a noisy picture the level of its noise is measured first, with parameters
        that lie on the model's devices."""
        if task not in self._samplers:
            self._samplers[task] = TaskSamplers(self._from_own_noise(task, params))
        return self._samplers[task]

    def arrays(self, pictures: Sequence[PictureRequest], source: Inputs | None) -> TaskArrays:
        """The pictures of a batch of one kind; `source` are the inputs under which they are inverted."""
        tasks = [picture.task for picture in pictures if picture.task is not None]
        found = [self._pictures[task] for task in tasks]
        arrays = TaskArrays(jnp.stack([to_float(one.image) for one in found]), source=source)
        others = [to_float(one.image_to) for one in found if one.image_to is not None]
        if others:
            fraction = jnp.asarray([picture.fraction for picture in pictures], jnp.float32)
            arrays = arrays._replace(image_to=jnp.stack(others), fraction=fraction)
        holes = [one.hole for one in found if one.hole is not None]
        if holes:
            factor = self._session.experiment.first_stage.autoencoder.downsample_factor
            cells = [latent_hole(hole, (hole.shape[0] // factor, hole.shape[1] // factor)) for hole in holes]
            seen = jnp.asarray([task.strength < 1.0 for task in tasks], jnp.float32)
            arrays = arrays._replace(hole=jnp.stack(cells), seen=seen)
        return arrays

    def finish(self, task: PictureTask, batch: TaskBatch, row: int) -> tuple[UInt8[np.ndarray, "h w c"], str]:
        """A picture of a batch as it is handed out, and what is to be said of it."""
        found, image = self._pictures[task], batch.images[row]
        if found.hole is not None and task.paste:
            image = paste(image, found.image, found.hole)
        if batch.reconstruction is not None and task.image_to is None:
            note = report(image, found.image, batch.reconstruction[row], float(batch.latent_error[row]))
            return image, note
        return image, self._notes.get(task, "")

    def _make_samplers(self, task: PictureTask) -> TaskSamplers:
        session, config = self._session, self._config
        skip = num_skipped(task.strength, config.num_sample_steps)
        if task.kind == "image":
            return TaskSamplers(session.sampler(config, skip=skip))
        config = config.for_inversion()
        kind = session.experiment.diffusion.prediction_type
        inversion = make_inversion(config, session.model.schedule, kind, skip=skip)
        return TaskSamplers(session.sampler(config, skip=skip), inversion)

    def _check_denoising(self) -> None:
        if self._config.sampler == "pndm":
            raise UserError("sampler=pndm needs at least 4 steps, which a noisy picture may not have; use another one")

    def _from_own_noise(self, task: PictureTask, params: Params) -> Sampler:
        session, schedule = self._session, self._session.model.schedule
        assert task.noise_level is not None
        tau = latent_noise(session.model, params, to_float(self._pictures[task].image), task.noise_level)
        t = timestep_of(schedule, tau)
        steps = num_steps_from(t, schedule, self._config.num_sample_steps)
        self._notes[task] = (
            f"noise of {task.noise_level:.1f} of 255 is {tau:.3f} in the latent: {steps} steps from timestep {t}"
        )
        return denoising_sampler(session, dataclasses.replace(self._config, num_sample_steps=steps), t)
