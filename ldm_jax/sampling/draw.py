"""A request drawn: pictures of one kind together, each told with its place, by which it can be drawn again."""

from collections.abc import Collection, Iterator, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import UInt8

from ldm_jax import sharding
from ldm_jax.config import ClassConditioning, MeshConfig, SpatialConditioning, Unconditional, differences
from ldm_jax.errors import UserError
from ldm_jax.model import require_diffusion_of_pictures
from ldm_jax.sampling.batches import BatchDrawer, WeakerModel, guidance_numbers
from ldm_jax.sampling.generate import Method, Request
from ldm_jax.sampling.picture_inputs import PictureInputs
from ldm_jax.sampling.request import DrawRequest, PictureRequest
from ldm_jax.sampling.session import Session
from ldm_jax.sampling.sizes import check_size, latent_shape, picture_size
from ldm_jax.sampling.tasks.asked import tells_hole
from ldm_jax.sampling.tasks.shelf import TaskShelf
from ldm_jax.training import processes


class BatchRow(NamedTuple):
    """Where a picture was drawn: with the same place, the same program makes the same bits."""

    batch_size: int
    row: int
    devices: int
    strip_rows: int | None = None
    """Rows of a feature map that the autoencoder computed at a time."""
    fsdp: int = 1
    tensor: int = 1
    """Axes of the mesh of these devices; the rest of it is `data`."""

    @property
    def mesh(self) -> MeshConfig:
        """How the devices were arranged."""
        return MeshConfig(fsdp=self.fsdp, tensor=self.tensor)

    def require_devices(self, count: int) -> None:
        """Refuse to draw on another number of devices, where pictures are equal to rounding alone.

        Raises:
            UserError: there are others.
        """
        if self.devices != count:
            raise UserError(
                f"the picture was drawn on {self.devices} devices, and there are {count}; on a CPU set "
                f"JAX_NUM_CPU_DEVICES={self.devices}"
            )


class Drawn(NamedTuple):
    """A picture, its number in the request, and where it was drawn."""

    position: int
    image: UInt8[np.ndarray, "h w c"]
    place: BatchRow
    note: str = ""
    """What was found out about it."""


class Easel:
    """A session that has accepted a request: everything is checked and encoded, and nothing compiled."""

    def __init__(self, session: Session, request: DrawRequest, weaker: Session | None = None) -> None:
        """Check the request.

        Raises:
            UserError: the model does not draw this, naming what it does.
        """
        session.require_denoiser()
        require_diffusion_of_pictures(session.experiment)
        for picture in request.pictures:
            check_picture(session, picture, weaker)
        if weaker is not None:
            check_weaker(session, weaker)
            if all(picture.guidance_scale == 1.0 for picture in request.pictures):
                raise UserError(
                    "a weaker model does nothing at guidance_scale=1.0; use --guidance-scale 2, or leave it out"
                )
        if session.classifier is not None:
            session.classifier([picture.class_label for picture in request.pictures])  # what is wrong with them
        self.request, self._session, self._tasks = request, session, TaskShelf(session, request)
        self._inputs = PictureInputs(session, request, self._tasks.told)
        self.mesh = session.mesh
        weaker_model = None if weaker is None else WeakerModel(weaker.model, weaker.params)
        sampler = session.sampler(request.config)
        self._drawer = BatchDrawer(
            session.model, session.params, sampler, request.config, sharding.make_mesh(session.mesh), weaker_model
        )
        self._weaker = None if weaker is None else weaker.model
        self._agreed = False

    def draw(self, batch_size: int, done: Collection[int] = ()) -> Iterator[Drawn]:
        """Draw the pictures whose positions are not `done`, in batches that do not depend on what is.

        Of several processes all have to draw, and what is done is what the first one says.
        """
        done = self._agree_on(done)
        for kind in self._kinds():
            size = self._drawer.batch_size(batch_size, len(kind))
            for begin in range(0, len(kind), size):
                positions = kind[begin : begin + size]
                if not all(position in done for position in positions):
                    yield from self._draw_batch(positions, size, done)

    def shown(self, position: int) -> list[UInt8[np.ndarray, "h w 3"]]:
        """How what a picture is given or made from looks; nothing where there is nothing."""
        picture = self.request.pictures[position]
        size = picture_size(self._session, picture)
        given = [self._session.given.shown(picture.given, size)] if picture.given else []
        return [*given, *([] if picture.task is None else [self._tasks.shown(picture.task)])]

    def follow(self, batch_size: int) -> None:
        """Draw with the first of several processes, which has the pictures."""
        for _ in self.draw(batch_size):
            pass

    def release(self) -> None:
        """Let the processes go that follow, where there was nothing to draw."""
        if not self._agreed:
            self._agree_on(range(len(self.request.pictures)))

    def _agree_on(self, done: Collection[int]) -> set[int]:
        self._agreed = True
        mine = np.isin(np.arange(len(self.request.pictures)), list(done))
        return set(np.flatnonzero(sharding.to_all(mine)[0]).tolist())

    def draw_at(self, position: int, place: BatchRow) -> Drawn:
        """Draw one picture where it was drawn before.

        Raises:
            UserError: there are other devices.
        """
        place.require_devices(self._drawer.mesh.size)
        image, note = self._batch([self.request.pictures[position]] * place.batch_size)[place.row]
        return Drawn(position, image, place, note)

    def _draw_batch(self, positions: Sequence[int], size: int, done: Collection[int]) -> Iterator[Drawn]:
        # the last batch is filled up with its last picture, so that no other shape is compiled
        filled = [*positions, *(positions[-1] for _ in range(size - len(positions)))]
        rows = self._batch([self.request.pictures[i] for i in filled])
        for row, position in enumerate(positions):
            if position not in done:
                image, note = rows[row]
                yield Drawn(position, image, self._place(size, row), note)

    def _place(self, batch_size: int, row: int) -> BatchRow:
        mesh = self._drawer.mesh
        axes = mesh.shape["fsdp"], mesh.shape["tensor"]
        return BatchRow(batch_size, row, mesh.size, self._session.experiment.strip_rows, *axes)

    def _batch(self, pictures: Sequence[PictureRequest]) -> list[tuple[UInt8[np.ndarray, "h w c"], str]]:
        """Draw pictures of one kind, each with what was found out about it."""
        processes.note("drawing pictures")
        config, first = self.request.config, pictures[0]
        inputs, negative, towards = self._inputs(pictures)
        request = Request(inputs, negative, guidance_numbers(config, [p.guidance_scale for p in pictures]))
        if first.prompt_to is not None:
            fraction = jnp.asarray([p.fraction for p in pictures], jnp.float32)
            request = request._replace(towards=towards, fraction=fraction)
        if self._session.classifier is not None:
            push = np.full(len(pictures), self.request.classifier_scale, np.float32)
            wanted = self._session.classifier([picture.class_label for picture in pictures])
            request = request._replace(wanted=jnp.asarray(wanted), push=jnp.asarray(push))
        if first.seed_to is not None:
            seeds_to, way = (np.asarray([getattr(p, name) for p in pictures]) for name in ("seed_to", "fraction"))
            request = request._replace(
                seeds_to=jnp.asarray(seeds_to, jnp.int32), noise_fraction=jnp.asarray(way, jnp.float32)
            )
        size = picture_size(self._session, first)
        method = Method(
            prediction_type=self._session.experiment.diffusion.prediction_type,
            guided=first.guidance_scale != 1.0,
            calls=config.guidance_calls,
            weaker=self._weaker if first.guidance_scale != 1.0 else None,
            interpolation=self.request.interpolation,
            latent_shape=latent_shape(self._session, size) if first.task is None else None,
        )
        seeds, index = (np.asarray([getattr(p, name) for p in pictures]) for name in ("seed", "index"))
        if first.task is None:
            return [(image, "") for image in self._drawer.draw(request, method, seeds, index)]
        source = self._inputs.source(pictures) if first.task.kind == "invert" else None
        arrays, samplers = self._tasks.arrays(pictures, source), self._tasks.samplers(first.task, self._drawer.params)
        batch = self._drawer.draw_task(request, method, first.task.kind, samplers, arrays, seeds, index)
        tasks = [picture.task or first.task for picture in pictures]
        return [self._tasks.finish(task, batch, row) for row, task in enumerate(tasks)]

    def _kinds(self) -> list[list[int]]:
        """Positions of the pictures that one program draws; on their own properties alone it depends which."""
        kinds: dict[tuple[Any, ...], list[int]] = {}
        for position, picture in enumerate(self.request.pictures):
            ways = picture.prompt_to is not None, picture.seed_to is not None
            kind = (picture.guidance_scale != 1.0, *ways, self._inputs.num_chunks(picture))
            kind = (*kind, picture.task, picture_size(self._session, picture))
            kinds.setdefault(kind, []).append(position)
        return list(kinds.values())


def can_guide(session: Session) -> bool:
    """Whether the model knows what no condition is, which guidance leads away from."""
    conditioning = session.experiment.conditioning
    if isinstance(conditioning, ClassConditioning):
        return conditioning.null_class
    if isinstance(conditioning, SpatialConditioning):  # maps have no empty one but that which training has shown
        return session.experiment.diffusion.cond_drop_prob > 0
    return not isinstance(conditioning, Unconditional)


def check_picture(session: Session, picture: PictureRequest, weaker: Session | None) -> None:
    """Refuse what the model does not draw.

    Raises:
        UserError: naming it.
    """
    kind = type(session.experiment.conditioning).__name__
    if picture.prompt is not None and picture.class_label is not None:
        raise UserError("give --prompt or --class-label, not both")
    if picture.guidance_scale != 1.0 and weaker is None and not can_guide(session):
        raise UserError(
            f"guidance_scale={picture.guidance_scale} needs a model that was trained without its condition too, and "
            f"this one has {kind}; leave --guidance-scale out, or give a weaker model to lead away from: --weaker RUN"
        )
    if picture.negative is not None:
        if picture.prompt is None:
            raise UserError(f"a negative prompt goes with a prompt, and this picture of {kind} has none")
        if picture.guidance_scale == 1.0:
            raise UserError("a negative prompt does nothing at guidance_scale=1.0; use --guidance-scale 5, or leave it")
        if weaker is not None:
            raise UserError("--negative-prompt and --weaker both say what guidance leads away from; give one of them")
    is_told = bool(picture.given) or (picture.task is not None and tells_hole(session, picture.task))
    if not session.given.is_empty and not is_told:
        raise UserError("this model is given something for each picture: say what by --given FILE or --heldout INDEX")
    check_size(session, picture_size(session, picture))
    if picture.prompt_to is not None and picture.prompt is None:
        raise UserError("an interpolation leads from one prompt to another: give --prompt beside --prompt-to")


def check_weaker(session: Session, weaker: Session) -> None:
    """Refuse a weaker model that works on other latents, or predicts something else.

    Raises:
        UserError: naming what differs.
    """
    weaker.require_denoiser()
    parts = {
        "autoencoder": lambda s: s.experiment.first_stage.autoencoder,
        "diffusion.schedule": lambda s: s.experiment.diffusion.schedule,
        "conditioning": lambda s: s.experiment.conditioning,
    }
    found = [line for name, part in parts.items() for line in differences(part(session), part(weaker), name)]
    types = [s.experiment.diffusion.prediction_type for s in (session, weaker)]
    if types[0] != types[1]:
        found.append(f"diffusion.prediction_type: {types[0]} -> {types[1]}")
    found += [
        f"parameters of the {name} differ"
        for name in ("autoencoder", "latent")
        if not sharding.are_close(session.params[name], weaker.params[name])
    ]
    if found:
        listing = "\n  ".join(found)
        raise UserError(
            f"the weaker model works on other latents or conditions than {session.experiment.name}:\n  {listing}\nuse "
            "an earlier checkpoint (--weaker-step), or a run with the same first stage"
        )
