"""`ldm sample` and `ldm grid`: from flags to files."""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeAlias

import jax

from ldm_jax.data.given.shelf import inputs_checksum
from ldm_jax.errors import UserError
from ldm_jax.files.places import Place, is_local, to_place
from ldm_jax.model import hash_params
from ldm_jax.pictures import draw_grid, save_picture
from ldm_jax.sampling.asked import Asked, ask
from ldm_jax.sampling.classifier import guided_by, load_classifier
from ldm_jax.sampling.description import Described, Origin, Origins, describe, read_description
from ldm_jax.sampling.draw import Easel, can_guide
from ldm_jax.sampling.files import animate, draw_to_files, folder_for
from ldm_jax.sampling.flags import GridCommand, SampleCommand, is_not_usual, sampling_config
from ldm_jax.sampling.model_hash import model_hash, told_hash
from ldm_jax.sampling.prompt_files import read_prompts
from ldm_jax.sampling.request import DrawRequest, PictureRequest
from ldm_jax.sampling.session import Session, load_session
from ldm_jax.sampling.tasks.asked import AskedTask
from ldm_jax.sampling.tasks.denoising import denoising_draws_noise
from ldm_jax.training import processes

OpenModel: TypeAlias = Callable[..., Session]
"""`interop.model_files.open_model`, which this room does not know."""


def draw(command: SampleCommand, open_model: OpenModel) -> list[Place]:
    """Draw what the flags ask for, or what is missing of it; returns the files.

    Raises:
        UserError: the model does not draw it.
    """
    lines = () if command.prompts is None else tuple(read_prompts(to_place(command.prompts)))
    asked = Asked(
        prompts=command.prompt,
        class_labels=command.class_label,
        lines=lines,
        negative_prompts=command.negative_prompt,
        prompts_to=command.prompt_to,
        num_frames=command.frames,
        given=command.given,
        heldout=command.heldout,
        guidance_scales=command.guidance_scale,
        num_samples=command.num_samples,
        seed=command.seed,
        seed_to=command.seed_to,
        pictures=AskedTask(**{f.name: getattr(command, f.name) for f in dataclasses.fields(AskedTask)}),
    )
    origin = Origin(
        path=command.run or command.model or "",
        config=command.config,
        tokenizer=command.tokenizer,
        ema_sigma_rel=command.ema_sigma_rel,
    )
    session, origin = open_origin(origin, open_model)
    session = session.on(command.mesh).in_strips(command.strip_rows)
    weaker, weaker_origin = open_weaker(command.weaker, command.weaker_step)
    config = sampling_config(command, session.experiment.sampling)
    draws_noise = command.denoise is not None and denoising_draws_noise(session, config)
    if command.denoise is not None and not draws_noise and is_not_usual(command, "num_samples"):
        raise UserError(
            f"--num-samples {command.num_samples} would make the same picture each time: --denoise draws no noise with "
            f"--sampler {config.sampler}; use --sampler euler_ancestral, or leave it out"
        )
    pictures = ask(asked, session, config.guidance_scale, has_weaker=weaker is not None, draws_noise=draws_noise)
    request = DrawRequest(
        pictures=pictures,
        config=config,
        prompt_syntax=command.prompt_syntax,
        long_prompts=command.long_prompts,
        interpolation=command.interpolation,
        classifier_scale=command.classifier_scale,
    )
    session, classifier_origin = _with_classifier(session, command.classifier)
    easel = Easel(session, request, weaker)
    origins = Origins(model=origin, weaker=weaker_origin, classifier=classifier_origin)
    if not processes.is_first():
        easel.follow(command.batch_size)
        return []
    base = to_place(command.run) / "samples" if command.run else Path("samples") / session.experiment.name
    out = folder_for(base, request, origins) if command.out is None else to_place(command.out)
    files = draw_to_files(easel, origins, out=out, batch_size=command.batch_size, credit=session.credit)
    easel.release()
    return [*files, *animate(request, out)] if command.animate else files


def draw_again(command: SampleCommand, open_model: OpenModel) -> list[Place]:
    """Draw the picture of a file again.

    Raises:
        UserError: the file does not say how, the model is not the same, there is a file in the way, or this is one of
            several processes.
    """
    if jax.process_count() > 1:
        raise UserError("--again draws one picture, for which one process is enough; run it without the others")
    source = to_place(command.again or "")
    out = to_place(command.out or ".") / f"{source.stem}-again.png"
    if out.exists():
        raise UserError(f"{out} is there already and is not overwritten; choose another folder: --out DIR")
    found = read_description(source)
    given = command.run or command.model
    origin = found.origins.model if given is None else dataclasses.replace(found.origins.model, path=given)
    session, model = open_origin(dataclasses.replace(origin, **_given(command)), open_model)
    found.place.require_devices(len(jax.devices()))
    session = session.on(found.place.mesh).in_strips(
        found.place.strip_rows if command.strip_rows is None else command.strip_rows
    )
    others = _moved(source, command, found.origins)
    step = command.weaker_step or (found.origins.weaker and found.origins.weaker.step)
    weaker, weaker_origin = open_weaker(others["weaker"], step)
    session, classifier_origin = _with_classifier(session, others["classifier"])
    origins = Origins(model=model, weaker=weaker_origin, classifier=classifier_origin)
    _require_same(source, found, origins)
    place = found.place._replace(strip_rows=session.experiment.strip_rows)
    drawn = Easel(session, found.request, weaker).draw_at(0, place)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        save_picture(drawn.image, out, describe(found.request, drawn, origins, session.credit))
    except OSError as error:
        raise UserError(f"cannot write {out} ({error}); choose another folder: --out DIR") from error
    return [out]


def draw_grid_of(command: GridCommand, open_model: OpenModel) -> Place:
    """Draw prompts or classes by guidance scales by seeds as one picture; returns the file.

    Raises:
        UserError: the model does not draw it.
    """
    session, _ = open_origin(Origin(path=command.run), open_model)
    if not session.given.is_empty and session.shelf is None:
        raise UserError("a grid gives this model held-out examples, and it came without data; use ldm sample --given")
    config = sampling_config(command, session.experiment.sampling)
    weaker, _ = open_weaker(command.weaker, command.weaker_step)
    guided = weaker is not None or can_guide(session)
    scales = command.guidance_scale or (config.guidance_scale if guided else 1.0,)
    pictures, rows = grid_pictures(command, scales)
    pictures = tuple(_given_first(session, picture) for picture in pictures)
    request = DrawRequest(pictures=pictures, config=config, prompt_syntax=command.prompt_syntax)
    found = {drawn.position: drawn.image for drawn in Easel(session, request, weaker).draw(command.batch_size)}
    width = len(command.seed)
    images = [[found[row * width + column] for column in range(width)] for row in range(len(rows))]
    out, columns = to_place(command.out), [f"seed {seed}" for seed in command.seed]
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        draw_grid(images, rows, out, columns=columns, footer=session.credit)
    except OSError as error:
        raise UserError(f"cannot write {out} ({error}); choose another file: --out FILE") from error
    return out


def _given_first(session: Session, picture: PictureRequest) -> PictureRequest:
    """The picture with what the first held-out example gives, where the model is given something."""
    if session.given.is_empty:
        return picture
    (spec,) = session.given.ask((), (), 1)
    return dataclasses.replace(picture, given=spec, given_sha256=inputs_checksum(session.given.read(spec)))


def grid_pictures(command: GridCommand, scales: Sequence[float]) -> tuple[tuple[PictureRequest, ...], list[str]]:
    """The pictures of a grid row by row, and the label of each row; all of a column start from the same noise.

    A negative prompt leaves the rows alone that are not guided.
    """
    if command.prompt and command.class_label:
        raise UserError("give --prompt or --class-label, not both")
    pictures, rows = [], []
    for label in command.prompt or command.class_label or (None,):
        for scale in scales:
            rows.append(f"{'' if label is None else label[:28] + ', '}scale {scale:g}")
            picture = PictureRequest(
                prompt=label if command.prompt else None,
                class_label=label if command.class_label else None,
                negative=None if scale == 1.0 else command.negative_prompt,
                guidance_scale=scale,
            )
            pictures += [dataclasses.replace(picture, seed=seed) for seed in command.seed]
    return tuple(pictures), rows


def open_origin(origin: Origin, open_model: OpenModel) -> tuple[Session, Origin]:
    """The model at a place, and the place with its checksum."""
    config, tokenizer = (None if p is None else Path(p).absolute() for p in (origin.config, origin.tokenizer))
    path = _absolute(origin.path)
    width = origin.ema_sigma_rel
    session = open_model(path, config=config, tokenizer=tokenizer, ema_sigma_rel=width)
    session.require_denoiser()
    yaml, folder = (None if p is None else str(p) for p in (config, tokenizer))
    return session, Origin(
        path=str(path),
        config=yaml,
        tokenizer=folder,
        ema_sigma_rel=width,
        sha256=model_hash(session),
        autoencoder=model_hash(session, "autoencoder"),
        told=told_hash(session),
    )


def _absolute(text: str) -> Place:
    place = to_place(text)
    return Path(place).absolute() if is_local(place) else place


def open_weaker(run: str | None, step: int | None) -> tuple[Session | None, Origin | None]:
    """The weaker model of a run, at a step or the newest, and where it is from; nothing for no run."""
    if run is None:
        return None, None
    path = _absolute(run)
    session = load_session(path, step=step)
    return session, Origin(
        path=str(path), step=step, sha256=model_hash(session), autoencoder=model_hash(session, "autoencoder")
    )


def _with_classifier(session: Session, run: str | None) -> tuple[Session, Origin | None]:
    if run is None:
        return session, None
    path = _absolute(run)
    classifier = load_classifier(path)
    guided = guided_by(session, classifier)
    return guided, Origin(path=str(path), sha256=hash_params(classifier.params["classifier"]))


def _given(command: SampleCommand) -> dict[str, str]:
    return {name: value for name in ("config", "tokenizer") if (value := getattr(command, name)) is not None}


def _moved(source: Place, command: SampleCommand, origins: Origins) -> dict[str, str | None]:
    """Where the models lie that drew a picture with its own: where the flags say, or where they were.

    Raises:
        UserError: a flag names one that had no part in it.
    """
    found: dict[str, str | None] = {}
    for name in ("weaker", "classifier"):
        origin, told = getattr(origins, name), getattr(command, name)
        if told is not None and origin is None:
            raise UserError(f"{source} was drawn without a {name}; leave --{name} {told} out")
        found[name] = told or (origin and origin.path)
    return found


def _require_same(source: Place, found: Described, origins: Origins) -> None:
    """Refuse to draw with other parameters what is to be the same picture."""
    wanted = found.origins.checksums()
    for name, checksum in origins.checksums().items():
        if checksum != wanted[name] and wanted[name] != "":  # which older pictures do not say
            other = {"weaker": origins.weaker, "classifier": origins.classifier}.get(name)
            path, told = (origins.model.path, "RUN") if other is None else (other.path, f"--{name} RUN")
            raise UserError(
                f"{source} was drawn with a {name} of checksum {str(wanted[name])[:12]}, and that of {path} is now "
                f"{str(checksum)[:12]}: it has been trained on, or is another one; give the one that drew it: "
                f"ldm sample {told} --again FILE"
            )
