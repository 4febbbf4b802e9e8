"""The base of this package's TFDS builders: they read local files, download nothing, and are not registered."""

from typing import ClassVar

import tensorflow_datasets as tfds


class LocalBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """A builder that downloads nothing; a subclass also passes `skip_registration=True`, as its name may be taken."""

    # TFDS looks for checksums of downloads beside the code, by a package (importlib_resources) it does not depend on.
    code_path: ClassVar[None] = None
