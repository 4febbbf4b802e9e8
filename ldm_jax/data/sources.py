"""The table of data sets: `load_source` opens the one that a configuration names.

A new data set is a configuration class in `config/data.py`, one file here with an `open_source(config, split)`, and
one line of the table. Those files are imported when they are used: TensorFlow Datasets costs half a second.
"""

import importlib

from ldm_jax.config import DataConfig, FashionMnist, ImageFolder, OpenMoji, OpenMojiScenes, PreparedTfds, Shapes
from ldm_jax.data.memory import MemorySource
from ldm_jax.data.source import Source, Split
from ldm_jax.errors import UserError

_MODULES: dict[type, str] = {
    OpenMoji: "openmoji",
    OpenMojiScenes: "scenes",
    FashionMnist: "fashion_mnist",
    ImageFolder: "image_folder",
    PreparedTfds: "prepared_tfds",
    Shapes: "shapes",
}


def load_source(config: DataConfig, split: Split) -> Source:
    """Open the split of the data set that `config.source` names, preparing it first where that is needed.

    Raises:
        UserError: the data are missing, empty, unreadable or cannot be prepared; the message says what to do.
    """
    module = importlib.import_module(f"{__package__}.{_MODULES[type(config.source)]}")
    source: Source = module.open_source(config, split)
    if len(source) == 0:
        raise UserError(f"the data set {source.info.name} has no pictures in its {split} split: {config.source}")
    return MemorySource(source)
