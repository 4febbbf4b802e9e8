"""The table of what models are given: `make_given` makes the kind that an experiment names.

A new kind is a configuration class in `config/given.py`, one file here with a `make(experiment, info, load)`, and one
line of the table. The training loop, the loss and `ldm sample` know none of them.
"""

import importlib
from collections.abc import Callable
from typing import TypeAlias

from ldm_jax.config import Experiment, LabelMap, Layout, LowResolution, MaskedPicture, Neighbours
from ldm_jax.data.given.given import Given
from ldm_jax.data.source import Source, Split

_MODULES: dict[type, str] = {
    LowResolution: "low_resolution",
    MaskedPicture: "masked_picture",
    LabelMap: "label_map",
    Layout: "layout",
    Neighbours: "neighbours",
}

Load: TypeAlias = Callable[[Split], Source]
"""Opens a split of the data set of an experiment."""


def make_given(experiment: Experiment, object_names: tuple[str, ...], load: Load) -> Given | None:
    """What makes the inputs beside caption and class that the experiment's model is given; None where there are none.

    Args:
        experiment: says what is given, and to which model.
        object_names: labels of objects in the data; see `SourceInfo`.
        load: called by the kinds that look into the data.

    Raises:
        UserError: the data have nothing of the kind, or the model does not fit them.
    """
    if experiment.given is None:
        return None
    module = importlib.import_module(f"{__package__}.{_MODULES[type(experiment.given)]}")
    return module.make(experiment, object_names, load)
