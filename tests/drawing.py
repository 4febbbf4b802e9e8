"""Requests of pictures as the tests make them."""

from typing import Any

from ldm_jax.config import SamplingConfig
from ldm_jax.sampling.asked import Asked, ask
from ldm_jax.sampling.description import Origin, Origins
from ldm_jax.sampling.draw import Easel
from ldm_jax.sampling.request import DrawRequest
from ldm_jax.sampling.session import Session

CONFIG = SamplingConfig(num_sample_steps=2, guidance_scale=2.0)
ORIGINS = Origins(model=Origin(path="/run", sha256="0123abcd"))


def request_for(
    session: Session, config: SamplingConfig = CONFIG, how: dict[str, Any] | None = None, **asked: Any
) -> DrawRequest:
    """What a command asks for with the words `asked` of `Asked`, drawn as `how` says."""
    pictures = ask(Asked(**asked), session, config.guidance_scale)
    return DrawRequest(pictures=pictures, config=config, **(how or {}))


def easel_for(session: Session, config: SamplingConfig = CONFIG, **asked: Any) -> Easel:
    """A session that has accepted them."""
    return Easel(session, request_for(session, config, **asked))
