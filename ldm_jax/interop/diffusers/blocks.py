"""How diffusers calls the parts of residual blocks, attention blocks and spatial transformers.

Its counts begin with 1 inside a block and with 0 everywhere else. Plain attention has other names in checkpoints from
before 2023 (`query`, `proj_attn`), which are read too.
"""

from collections.abc import Callable, Iterable

PartName = Callable[[str], str]
"""From the path of a part inside an attention block to its foreign name."""

_RESNET = {
    "norm_0": "norm1",
    "conv_0": "conv1",
    "embedding": "time_emb_proj",
    "norm_1": "norm2",
    "conv_1": "conv2",
    "skip": "conv_shortcut",
}
_PROJECTIONS = {"query": "to_q", "key": "to_k", "value": "to_v", "out": "to_out.0"}
_PROJECTIONS_BEFORE_2023 = {"query": "query", "key": "key", "value": "value", "out": "proj_attn"}
_TRANSFORMER = {"norm": "norm", "project_in": "proj_in", "project_out": "proj_out"}
_TRANSFORMER_BLOCK = {
    "norm_0": "norm1",
    "norm_1": "norm2",
    "norm_2": "norm3",
    "feed_forward/dense_0": "ff.net.0.proj",
    "feed_forward/dense_1": "ff.net.2",
    **{f"self_attention/{part}": f"attn1.{name}" for part, name in _PROJECTIONS.items()},
    **{f"cross_attention/{part}": f"attn2.{name}" for part, name in _PROJECTIONS.items()},
}


def has_names_from_before_2023(names: Iterable[str]) -> bool:
    """Whether the plain attention of a checkpoint has its first names."""
    return any(name.endswith(".proj_attn.weight") for name in names)


def plain_attention(before_2023: bool) -> PartName:
    """The names inside plain self-attention."""
    projections = _PROJECTIONS_BEFORE_2023 if before_2023 else _PROJECTIONS
    return {"norm": "group_norm", **{f"attention/{part}": name for part, name in projections.items()}}.__getitem__


def transformer(part: str) -> str:
    """The name of a part of a spatial transformer."""
    if part in _TRANSFORMER:
        return _TRANSFORMER[part]
    block, inner = part.split("/", 1)
    return f"transformer_blocks.{index_of(block)}.{_TRANSFORMER_BLOCK[inner]}"


def resnet(part: str) -> str:
    """The name of a part of a residual block."""
    return _RESNET[part]


def block(path: str, attention: PartName) -> str:
    """The name of a part of one of a level's blocks: of `block_1/resnet/conv_0`, `block_0/attention/norm`."""
    name, kind, part = path.split("/", 2)
    if kind == "resnet":
        return f"resnets.{index_of(name)}.{resnet(part)}"
    return f"attentions.{index_of(name)}.{attention(part)}"


def index_of(name: str) -> int:
    """The number behind a name: 2 of `down_2`."""
    return int(name.rsplit("_", 1)[1])
