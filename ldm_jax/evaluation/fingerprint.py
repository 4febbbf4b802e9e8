"""What arrays are, in one line: by it features are found again, and never taken for those of something else."""

import hashlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jaxtyping import Shaped

from ldm_jax.sharding import path_names, to_host


def arrays_fingerprint(arrays: Mapping[str, Shaped[np.ndarray, "..."]]) -> str:
    """SHA-256 (hex) of names, types, shapes and values."""
    digest = hashlib.sha256()
    for name, values in sorted(arrays.items()):
        digest.update(f"{name} {values.dtype.str} {values.shape}\n".encode())
        digest.update(np.ascontiguousarray(values).data)
    return digest.hexdigest()


def tree_fingerprint(tree: Any) -> str:
    """SHA-256 (hex) of a parameter tree."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return arrays_fingerprint({"/".join(path_names(path)): to_host(leaf) for path, leaf in leaves})
