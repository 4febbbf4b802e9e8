"""Which model drew a picture: checksums of its parameters, computed once for a checkpoint and kept beside its seal."""

import hashlib
import json
import logging
from typing import Any, Literal

from ldm_jax.files.json_files import parse_json
from ldm_jax.files.places import Place
from ldm_jax.files.whole_files import write_atomically
from ldm_jax.model import hash_params
from ldm_jax.sampling.session import Session

logger = logging.getLogger(__name__)

_CACHE = "parameters.json"


def model_hash(session: Session, part: Literal["autoencoder"] | None = None) -> str:
    """SHA-256 of the parameters of a session, or of a part: of every path, type, shape and value.

    The seal of a checkpoint tells whether it is the one whose checksum was kept.
    """
    name, params = part or "sha256", session.params if part is None else session.params[part]
    if session.seal is None:
        return hash_params(params)
    try:
        seal = hashlib.sha256(session.seal.read_bytes()).hexdigest()
        cache = session.seal.with_name(_CACHE)
    except OSError:  # the checkpoint is gone, its parameters are here
        return hash_params(params)
    known = _read(cache)
    known = known if known.get("seal") == seal else {"seal": seal}
    if isinstance(known.get(name), str):
        return known[name]
    found = hash_params(params)
    try:
        write_atomically(cache, json.dumps(known | {name: found}) + "\n")
    except OSError as error:
        logger.info("the checksum of the model cannot be kept in %s (%s)", cache, error)
    return found


def told_hash(session: Session) -> str:
    """SHA-256 of what a model draws with beside its parameters: tokenizers, and the scheduler that came with it."""
    options = None if session.imported_sampler is None else dict(session.imported_sampler.options)
    tokenizers = {name: tokenizer.to_str() for name, tokenizer in session.tokenizers.items()}
    return hashlib.sha256(json.dumps([options, tokenizers], sort_keys=True, default=str).encode()).hexdigest()


def _read(path: Place) -> dict[str, Any]:
    try:
        found = parse_json(path.read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
