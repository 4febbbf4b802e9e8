"""The base of this package's TFDS builders: they read local files, download nothing, and are not registered."""

import tensorflow_datasets as tfds


class LocalInfo(tfds.core.DatasetInfo):
    """A description that is not looked for elsewhere."""

    def initialize_from_bucket(self) -> None:
        """Do nothing; TFDS would look in its cloud storage, and leave an empty folder in /tmp each time."""


class LocalBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """A builder that downloads nothing; a subclass also passes `skip_registration=True`, as its name may be taken."""

    # TFDS looks for checksums of downloads beside the code, by a package (importlib_resources) it does not depend on.
    code_path = None  # pyright: ignore[reportIncompatibleVariableOverride]
