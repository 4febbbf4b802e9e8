"""What the first stage loses: held-out pictures through the encoder's most likely latents and back, in 8 bits.

PSNR and SSIM of each pair, LPIPS where its weights are, and the distance of the two sets over a feature network (rFD).
"""

import dataclasses
import functools
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8

from ldm_jax import sharding
from ldm_jax.autoencoder.perceptual import TRUNKS, Lpips
from ldm_jax.autoencoder.perceptual_weights import EXTRA, perceptual_files, perceptual_package, read_perceptual
from ldm_jax.config import SMALLEST_PICTURE, MeshConfig, PerceptualConfig, PerceptualNet
from ldm_jax.data.preparation import digest
from ldm_jax.evaluation.chunks import Chunks, Part, all_parts
from ldm_jax.evaluation.image_quality import psnr, ssim
from ldm_jax.evaluation.pictures import PictureSet, local_batch, local_size
from ldm_jax.evaluation.scores import Score, ScoreOptions, mean_score
from ldm_jax.model import Params, hash_params, make_model
from ldm_jax.nn.apply import apply
from ldm_jax.pictures import draw_grid, to_uint8
from ldm_jax.sampling.session import Session

logger = logging.getLogger(__name__)

_COLUMNS, _ROWS = 8, 8
_PAIRS = "pairs"
_PROTOCOL = "8-bit pairs, each pair alone, then the mean"


LpipsFiles: TypeAlias = Mapping[PerceptualNet, tuple[Path, ...]]
"""The files of trunk and heads of each network of LPIPS that has any."""


class Pairs(NamedTuple):
    """Held-out pictures and what comes back."""

    originals: PictureSet
    reconstructions: PictureSet


def reconstructions(session: Session, pictures: PictureSet, batch_size: int) -> PictureSet:
    """The pictures behind the autoencoder, computed on the devices of this process when they are read."""
    mesh, experiment = sharding.make_mesh(MeshConfig(), jax.local_devices()), session.experiment
    model, params = make_model(experiment, mesh), session.params
    size = local_size(batch_size)
    params = sharding.within_reach({"autoencoder": params["autoencoder"]})
    autoencoder = jax.device_put(params, sharding.replicated(mesh))

    @jax.jit
    def pass_through(params: Params, image: UInt8[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        z = model.encode(params, image.astype(jnp.float32) / 127.5 - 1).mode()
        return apply(model.autoencoder, params["autoencoder"], z, method="decode")

    def read(start: int, stop: int) -> UInt8[np.ndarray, "b h w c"]:
        batch = local_batch(pictures.read(start, stop), size)
        images = pass_through(autoencoder, jax.device_put(batch, sharding.batch_sharding(mesh)))
        return to_uint8(np.asarray(images))[: stop - start]

    weights = hash_params(params["autoencoder"])
    return dataclasses.replace(
        pictures,
        name=f"{pictures.name} reconstructed",
        fingerprint=digest(["reconstructed", pictures.fingerprint, weights, experiment.strip_rows]),
        read=read,
        about={**pictures.about, "autoencoder_sha256": weights},
    )


def lpips_files(given: Sequence[str], trained_by: PerceptualConfig) -> LpipsFiles:
    """The files of each network of LPIPS: those given, or else those that a run was trained by, then the package's.

    Args:
        given: files that were named for the evaluation; each goes to the network whose weights it holds.
        trained_by: what the run compares pictures by; files of it that are no longer there are left out with a warning.

    Raises:
        UserError: a file cannot be read, or holds weights of no network.
    """
    files = [Path(file) for file in given or trained_by.files]
    missing = [] if given else [file for file in files if not file.is_file()]
    if missing:
        logger.warning(
            "%s, by which this run was trained, is not there; name its weights with --lpips-files",
            ", ".join(map(str, missing)),
        )
        files = []
    packaged: LpipsFiles = {net: (file,) for net in TRUNKS if (file := perceptual_package(net)) is not None}
    return {**packaged, **perceptual_files(files)}


def pair_scores(
    pairs: Pairs, lpips_weights: LpipsFiles, cache: Path, batch_size: int, *, bootstrap: int, seed: int
) -> list[Score]:
    """PSNR, SSIM and LPIPS with intervals over the pictures; a process measures the pairs of its parts alone.

    Without its weights, or of pictures in which its network sees nothing, LPIPS is left out, and that is said.

    Raises:
        UserError: the pictures are too small for SSIM, or files of LPIPS are damaged or incomplete.
    """
    mesh, size = sharding.make_mesh(MeshConfig(), jax.local_devices()), local_size(batch_size)
    nets = _lpips_nets(lpips_weights, min(pairs.originals.read(0, 1).shape[1:3]))
    weights: dict[PerceptualNet, Params] = {net: read_perceptual(net, lpips_weights[net]) for net in nets}
    lpips = {net: _lpips(net, jax.device_put(params, sharding.replicated(mesh))) for net, params in weights.items()}

    def compute(start: int, stop: int) -> Part:
        first, second = pairs.originals.read(start, stop), pairs.reconstructions.read(start, stop)
        a, b = (jax.device_put(local_batch(x, size), sharding.batch_sharding(mesh)) for x in (first, second))
        distances = {f"lpips_{net}": np.asarray(distance(a, b))[: stop - start] for net, distance in lpips.items()}
        return {"psnr": psnr(first, second), "ssim": ssim(first, second)} | distances

    about = {net: hash_params(params) for net, params in weights.items()}
    fingerprint = digest([*(pictures.fingerprint for pictures in pairs), about, size])
    chunks = Chunks(folder=cache, fingerprint=fingerprint, size=size)
    measured = all_parts(chunks, pairs.originals.count, compute, what=pairs.reconstructions.name)
    options = ScoreOptions(label=_PAIRS, protocol=_PROTOCOL, bootstrap=bootstrap, seed=seed)
    return [mean_score(name, rows, options, reference=len(rows)) for name, rows in measured.items()]


def draw_pairs(pairs: Pairs, path: Path, credit: str, batch_size: int) -> None:
    """Write a grid: each row of held-out pictures above the row of what comes back."""
    shown = min(pairs.originals.count, _COLUMNS * _ROWS // 2)
    parts = [(start, min(start + batch_size, shown)) for start in range(0, shown, batch_size)]
    first, second = (np.concatenate([pictures.read(*part) for part in parts]) for pictures in pairs)
    rows, labels = [], []
    for start in range(0, shown, _COLUMNS):
        part = slice(start, start + _COLUMNS)
        rows += [list(first[part]), list(second[part])]
        labels += ["held out", "reconstructed"]
    draw_grid(rows, labels, path, footer=credit)


def _lpips_nets(weights: LpipsFiles, side: int) -> list[PerceptualNet]:
    """Those that can look at pictures whose shorter side is this."""
    there: list[PerceptualNet] = [net for net in TRUNKS if net in weights]
    if not there:
        logger.warning(
            "LPIPS is left out: %s brings its weights, or name files of torchvision and lpips with --lpips-files", EXTRA
        )
    for net in there:
        if side < SMALLEST_PICTURE[net]:
            logger.warning("LPIPS over %s is left out: it needs %d pixels at least", net, SMALLEST_PICTURE[net])
    return [net for net in there if side >= SMALLEST_PICTURE[net]]


def _lpips(net: PerceptualNet, params: Params) -> Callable[[jax.Array, jax.Array], Float[Array, " b"]]:
    @jax.jit
    def distance(params: Params, a: UInt8[Array, "b h w c"], b: UInt8[Array, "b h w c"]) -> Float[Array, " b"]:
        with jax.default_matmul_precision("float32"):
            first, second = (x.astype(jnp.float32) / 127.5 - 1 for x in (a, b))
            return apply(Lpips(net), params, first, second)

    return functools.partial(distance, params)
