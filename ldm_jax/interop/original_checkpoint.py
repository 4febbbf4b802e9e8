"""placeholder"""

from pathlib import Path

from ldm_jax.errors import UserError
from ldm_jax.sampling.session import Session


def is_original(path: Path) -> bool:
    """."""
    return False


def read_original(path: Path, config: Path | None = None, weights: str = "auto") -> Session:
    """."""
    raise UserError("")


def write_original(session: Session, path: Path, dtype: str | None = None) -> None:
    """."""
    raise UserError("")
