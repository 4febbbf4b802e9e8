"""Parity cases in the format of the original code: a project file beside one file of weights.

A first stage is asked for what it makes of `image`; a U-Net for `unet_out`, from `x`, `timestep` and conditions:
`class_label` goes through the class embedder; `context`, `concat` and `y` (labels or a vector) are as the U-Net sees
them.
"""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from ldm_jax.conditioning.conditions import Conditions
from ldm_jax.interop.cases.arrays import Arrays
from ldm_jax.interop.cases.comparison import Comparison
from ldm_jax.interop.cases.components import Outputs, autoencoder_outputs, first, last, outputs_of
from ldm_jax.interop.original.files import read_original
from ldm_jax.model import LatentDiffusion, Params

_INPUTS = {"image", "x", "timestep", "class_label", "context", "concat", "y"}


def run_original_case(path: Path, arrays: Arrays, tolerance: float) -> list[Comparison]:
    """What a case asks of a first stage, a U-Net or both.

    Raises:
        UserError: the model is not supported, or the case asks for something that is not.
    """
    session = read_original(path)
    model, params = session.model, session.params

    def found() -> Outputs:
        outputs: Outputs = {}
        if "image" in arrays:
            outputs |= autoencoder_outputs(
                model.autoencoder, params["autoencoder"], arrays["image"], arrays, flat=False
            )
        if not session.is_first_stage:
            x, t = last(arrays["x"]), arrays["timestep"]
            out = jax.jit(model.denoise)(params, x, t, _conditions(model, params, arrays))
            outputs["unet_out"] = first(out)
        return outputs

    return outputs_of(arrays, _INPUTS, found, tolerance)


def _conditions(model: LatentDiffusion, params: Params, arrays: Arrays) -> Conditions:
    conditions = Conditions()
    if "class_label" in arrays:
        conditions = model.condition(params, {"class_labels": jnp.asarray(arrays["class_label"])})
    given = {"context": arrays.get("context"), "concat": arrays.get("concat")}
    if given["concat"] is not None:
        given["concat"] = last(given["concat"])
    if "y" in arrays:
        given["class_labels" if np.issubdtype(arrays["y"].dtype, np.integer) else "vector"] = arrays["y"]
    return conditions._replace(**{name: jnp.asarray(x) for name, x in given.items() if x is not None})
