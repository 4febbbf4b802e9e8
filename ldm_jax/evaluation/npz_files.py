"""The .npz files of guided-diffusion (ADM), read and written: statistics of a reference, and batches of samples.

(1) a reference holds `mu` and `sigma` of the pooled features and `mu_s` and `sigma_s` of the spatial ones;
(2) samples are `arr_0`, uint8 [n, h, w, 3].

What is written here also says over which network: a file that says another one is refused, one that says none is taken
at its word.
"""

import uuid
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Shaped, UInt8

from ldm_jax.errors import UserError
from ldm_jax.evaluation.moments import Statistics
from ldm_jax.evaluation.scores import FeatureSet


def read_npz(file: Path) -> dict[str, Shaped[np.ndarray, "..."]]:
    """The arrays of an .npz; pickled ones are not read.

    Raises:
        UserError: the file is missing, damaged, or holds objects.
    """
    try:
        content = np.load(file, allow_pickle=False)
        if not isinstance(content, np.lib.npyio.NpzFile):
            raise ValueError("it is a single array, a .npy")
        with content:
            return {name: content[name] for name in content.files}
    except OSError as error:
        raise UserError(f"cannot read {file} ({error.strerror or error}); check that it is there") from error
    except (ValueError, EOFError, NotImplementedError, zipfile.BadZipFile, zlib.error) as error:
        raise UserError(
            f"{file} is no .npz of plain arrays ({error}); get it again, or write it with np.savez"
        ) from error


def npz_samples(file: Path, arrays: dict[str, Shaped[np.ndarray, "..."]]) -> UInt8[np.ndarray, "n h w c"] | None:
    """The pictures of a file (2), if it has any.

    Raises:
        UserError: they are not 8-bit pictures, or there are none and no statistics either.
    """
    pictures = arrays.get("arr_0")
    if pictures is None:
        if {"mu", "sigma"} <= set(arrays):
            return None
        raise UserError(
            f"{file} holds {', '.join(arrays) or 'nothing'}; samples are called arr_0, statistics mu and sigma"
        )
    if pictures.dtype != np.uint8 or pictures.ndim != 4 or pictures.shape[-1] not in (1, 3) or not len(pictures):
        raise UserError(
            f"arr_0 of {file} is {pictures.dtype}{list(pictures.shape)}; samples are uint8 [n, height, width, 1 or 3]"
        )
    return pictures


def npz_statistics(file: Path, arrays: dict[str, Shaped[np.ndarray, "..."]], label: str) -> FeatureSet:
    """The statistics of a file (1), for a network.

    Raises:
        UserError: they are missing, do not fit together, or are of another network.
    """
    network = str(arrays["network"]) if "network" in arrays else label
    if network != label:
        raise UserError(
            f"{file} holds statistics of {network}, not of {label}; choose that network or another reference"
        )
    count = _count(file, arrays["count"]) if "count" in arrays else None
    pooled = _statistics(file, arrays, "mu", "sigma", count)
    if pooled is None:
        raise UserError(f"{file} holds {', '.join(arrays) or 'nothing'}; statistics are called mu and sigma")
    return FeatureSet(statistics=pooled, spatial_statistics=_statistics(file, arrays, "mu_s", "sigma_s", count))


def write_statistics(file: Path, label: str, pooled: Statistics, spatial: Statistics | None) -> None:
    """Write (1) in float64."""
    arrays: dict[str, Any] = {"mu": pooled.mean, "sigma": pooled.covariance, "network": np.array(label)}
    if spatial is not None:
        arrays |= {"mu_s": spatial.mean, "sigma_s": spatial.covariance}
    if pooled.count is not None:
        arrays["count"] = np.array(pooled.count)
    write_npz(file, arrays)


def write_npz(file: Path, arrays: dict[str, Shaped[np.ndarray, "..."]]) -> None:
    """Write arrays so that a reader finds all or no file, whoever else writes it; raises OSError if it fails."""
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_name(f"{file.name}.{uuid.uuid4().hex}.tmp")
    try:
        with temporary.open("xb") as stream:
            np.savez(stream, **arrays)  # type: ignore[arg-type]
        temporary.replace(file)
    finally:
        temporary.unlink(missing_ok=True)


def _count(file: Path, count: Shaped[np.ndarray, "..."]) -> int:
    if count.shape != () or count.dtype.kind not in "iu" or count < 0:
        raise UserError(f"count of {file} is {count.dtype}{list(count.shape)}, not a number of pictures")
    return int(count)


def _statistics(
    file: Path, arrays: dict[str, Shaped[np.ndarray, "..."]], mean: str, covariance: str, count: int | None
) -> Statistics | None:
    if mean not in arrays or covariance not in arrays:
        return None
    if kinds := [
        f"{name} is {arrays[name].dtype}" for name in (mean, covariance) if arrays[name].dtype.kind not in "fiu"
    ]:
        raise UserError(f"{file} holds no statistics: {', '.join(kinds)}, and not numbers")
    mu, sigma = (np.asarray(arrays[name], np.float64) for name in (mean, covariance))
    if mu.ndim != 1 or sigma.shape != (len(mu), len(mu)):
        raise UserError(
            f"{mean} and {covariance} of {file} are {list(mu.shape)} and {list(sigma.shape)}, not [d] and [d, d]"
        )
    if not np.allclose(sigma, sigma.T, rtol=1e-4, atol=1e-6 * np.abs(sigma).max(), equal_nan=True):
        raise UserError(f"{covariance} of {file} is not symmetric, so it is no covariance; compute it again")
    if (np.diag(sigma) < 0).any():
        raise UserError(f"{covariance} of {file} has negative variances, so it is no covariance; compute it again")
    return Statistics(mean=mu, covariance=sigma, count=count)
