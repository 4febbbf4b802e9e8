"""The one door to a whole model on disk: a run of this project, or a model of another system."""

from pathlib import Path

from ldm_jax.errors import UserError
from ldm_jax.sampling.session import Session, load_session


def open_model(path: Path) -> Session:
    """The model at `path`, ready to draw and to train on.

    Raises:
        UserError: nothing there is a model that this project knows, or it is damaged; the message says what.
    """
    if (path / "config.json").is_file() and (path / "checkpoints").is_dir():
        return load_session(path)
    raise UserError(f"{path} is no model")
