"""A sample set drawn again: the same request of the same model, compared picture by picture."""

import dataclasses

import numpy as np

from ldm_jax.config import MeshConfig, from_dict
from ldm_jax.errors import UserError
from ldm_jax.files.places import Place
from ldm_jax.interop.model_files import open_model
from ldm_jax.manifest import NAME, Manifest, read_manifest
from ldm_jax.pictures import read_picture
from ldm_jax.reproduction.outcome import Again, Compared
from ldm_jax.sampling.command import open_origin, open_weaker
from ldm_jax.sampling.description import Origin, Origins, origins_of
from ldm_jax.sampling.draw import Easel
from ldm_jax.sampling.files import draw_to_files
from ldm_jax.sampling.request import DrawRequest


def reproduce_samples(manifest: Manifest, folder: Place, out: Place, model: str | None = None) -> Again:
    """Draw the pictures of a manifest in `out`; `model` is where their run now lies, if not where the manifest says.

    Raises:
        UserError: the manifest is damaged or of pictures that were not finished, or the model is gone or another one.
    """
    try:
        request, origins = DrawRequest.from_json(manifest["config"]), origins_of(manifest)
        mesh, batch_size = from_dict(manifest["mesh"]), int(manifest["batch_size"])
        if not isinstance(mesh, MeshConfig):
            raise TypeError(f"its mesh is {mesh!r}")
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{folder / NAME} is damaged, or of another version ({error})") from error
    if not manifest["results"]:
        raise UserError(f"the pictures of {folder / NAME} are not finished: give the command again that draws them")
    origin = origins.model if model is None else dataclasses.replace(origins.model, path=model)
    session, found = open_origin(origin, open_model)
    weaker, weaker_origin = None, None
    if origins.weaker is not None:
        weaker, weaker_origin = open_weaker(origins.weaker.path, origins.weaker.step)
    _require_same(origins.model, found)
    if origins.weaker is not None and weaker_origin is not None:
        _require_same(origins.weaker, weaker_origin)
    session = session if mesh == MeshConfig() else session.on(mesh)
    easel, now = Easel(session, request, weaker), Origins(model=found, weaker=weaker_origin)
    draw_to_files(easel, now, out=out, batch_size=batch_size, credit=session.credit)
    again = read_manifest(out / NAME)
    results = [
        _compared(name, old, again["results"].get(name), folder, out) for name, old in manifest["results"].items()
    ]
    return Again(out, again, results)


def _require_same(known: Origin, found: Origin) -> None:
    if known.sha256 != found.sha256:
        raise UserError(
            f"the pictures were drawn with a model of checksum {known.sha256[:12]}, and that of {found.path} is now "
            f"{found.sha256[:12]}: it has been trained on, or is another one; give the one that drew them: --model RUN"
        )


def _compared(name: str, old: str, new: str | None, folder: Place, out: Place) -> Compared:
    note = _distance(folder / name, out / name) if old != new else ""
    return Compared(name, old, new, note)


def _distance(old: Place, new: Place) -> str:
    """How far apart two pictures are, where the old one is there still."""
    if not old.exists() or not new.exists():
        return ""
    a, b = (read_picture(path)[0].astype(int) for path in (old, new))
    if a.shape != b.shape:
        return f"{a.shape[1]}x{a.shape[0]} -> {b.shape[1]}x{b.shape[0]} pixels"
    apart = np.abs(a - b)
    return f"{np.mean(apart > 0):.2%} of the values differ, by at most {apart.max()} of 255"
