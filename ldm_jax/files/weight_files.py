"""The one door to tensors of others: open a file or a sharded set, or find the weights in a component's folder.

A set is an index (JSON) whose `weight_map` says for each tensor which file beside it holds it, as diffusers and
transformers write it.
"""

import logging
import re
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from io import BufferedReader
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import numpy as np
from jaxtyping import Shaped

from ldm_jax.errors import UserError
from ldm_jax.files.json_files import parse_json
from ldm_jax.files.safetensors_header import read_safetensors
from ldm_jax.files.tensor_file import TensorFile, Tensors, damaged, no_such_tensor, open_binary, unreadable
from ldm_jax.files.torch_checkpoint import read_torch_legacy, read_torch_zip

logger = logging.getLogger(__name__)

_FORMATS = "safetensors, a checkpoint of torch.save, or the .index.json of a sharded set"


def open_tensors(path: Path) -> Tensors:
    """Open a file of tensors, or with an `.index.json` all shards it names; no tensor is read yet.

    What a file is, its first bytes tell: `.ckpt` and `.bin` files of both kinds are about.

    Raises:
        UserError: the file is missing, of no known format, damaged, or holds what is not safe to read.
    """
    return _open_shards(path) if path.suffix == ".json" else _open_file(path)


def find_weights(folder: Path, stem: str, variant: str | None = None) -> Path:
    """The file or index with the weights of a component, to be opened by `open_tensors`.

    Safetensors are preferred to pickles, and one file to a sharded set. If there is nothing without a variant, the
    only variant there is is used, which is logged.

    Args:
        folder: the component's folder, such as `unet/`.
        stem: "diffusion_pytorch_model" for diffusers, "model" for transformers.
        variant: such as "fp16" or "non_ema".

    Raises:
        UserError: there are no such weights, or several variants and none chosen.
    """
    names = _candidates(stem, variant)
    if found := next((folder / name for name in names if (folder / name).is_file()), None):
        return found
    others = _variants(folder, stem)
    if variant is None and len(others) == 1:
        (other,) = others
        logger.warning("%s holds its weights only as variant %s, which is used", folder, other)
        return find_weights(folder, stem, other)
    available = f"; it has the variants {', '.join(others)}, of which one can be chosen" if others else ""
    if variant is not None and any((folder / name).is_file() for name in _candidates(stem, None)):
        available += "; it has weights without a variant"
    raise UserError(f"no weights in {folder}: looked for {', '.join(names)}{available}")


@dataclass(frozen=True, kw_only=True)
class _ShardedTensors:
    """A set of open files; see `Tensors`."""

    path: Path
    homes: Mapping[str, TensorFile]
    """The file of each tensor."""
    metadata: Mapping[str, Any] = field(default_factory=dict)

    def names(self) -> tuple[str, ...]:
        return tuple(self.homes)

    def shape(self, name: str) -> tuple[int, ...]:
        return self._home(name).shape(name)

    def dtype(self, name: str) -> np.dtype[Any]:
        return self._home(name).dtype(name)

    def read(self, name: str) -> Shaped[np.ndarray, "..."]:
        return self._home(name).read(name)

    def close(self) -> None:
        for file in self.homes.values():
            file.close()

    def __enter__(self) -> "_ShardedTensors":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _home(self, name: str) -> TensorFile:
        if name not in self.homes:
            raise no_such_tensor(self.path, name, len(self.homes))
        return self.homes[name]


def _open_file(path: Path) -> TensorFile:
    with ExitStack() as stack:
        file = stack.enter_context(open_binary(path))
        opened = _reader(path, file.read(512))(path, file)
        stack.pop_all()
        return opened


def _reader(path: Path, head: bytes) -> Callable[[Path, BufferedReader], TensorFile]:
    """The function that reads a file that begins like this."""
    if not head:
        raise damaged(path, "it is empty")
    if head.startswith(b"PK\3\4"):
        return read_torch_zip
    if head[8:9] == b"{":
        return read_safetensors
    if head.startswith(b"\x80"):
        return read_torch_legacy
    if head.startswith(b"version https://git-lfs"):
        raise UserError(f"{path} is a pointer of Git LFS, not the file itself; get it with `git lfs pull`")
    if head[257:262] == b"ustar":
        raise UserError(f"{path} is a tar archive, as PyTorch 0.1 wrote; load it there and save it as .safetensors")
    if path.suffix == ".safetensors":  # it will say what is wrong with it
        return read_safetensors
    raise UserError(f"{path} is no file of tensors; it has to be {_FORMATS}")


def _open_shards(path: Path) -> _ShardedTensors:
    index = _read_index(path)
    with ExitStack() as stack:
        files: dict[str, TensorFile] = {}
        for shard in dict.fromkeys(index["weight_map"].values()):
            place = _place_of(path, shard)
            if not place.is_file():
                raise UserError(f"{path} names the shard {shard}, which is missing; get it too")
            files[shard] = stack.enter_context(_open_file(place))
        homes = {name: files[shard] for name, shard in index["weight_map"].items()}
        _check_shards(path, index["weight_map"], files)
        stack.pop_all()
        return _ShardedTensors(path=path, homes=homes, metadata=index.get("metadata") or {})


def _read_index(path: Path) -> dict[str, Any]:
    try:
        index = parse_json(path.read_text("utf-8"))
    except OSError as error:
        raise unreadable(path, error) from error
    except ValueError as error:
        raise damaged(path, f"it is no JSON ({error})") from error
    weights = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(weights, dict) or not all(isinstance(shard, str) for shard in weights.values()) or not weights:
        raise damaged(path, "it has no weight_map from tensors to files")
    return index


def _place_of(path: Path, shard: str) -> Path:
    """Where a shard lies; the index may not lead out of its folder, but Hugging Face's cache may, to its `blobs`."""
    posix, windows = PurePosixPath(shard), PureWindowsPath(shard)
    if posix.is_absolute() or windows.anchor or ".." in (*posix.parts, *windows.parts) or not posix.name:
        raise UserError(f"{path} names the shard {shard!r}, which leads out of its folder; do not use these files")
    folder = path.parent.resolve()
    place = (folder / shard).resolve()
    allowed = [folder, *(parent.parent / "blobs" for parent in folder.parents if parent.name == "snapshots")]
    if not any(place.is_relative_to(root) for root in allowed):
        raise UserError(
            f"{path} names the shard {shard!r}, a link out of its folder to {place}; put the file itself there"
        )
    return place


def _check_shards(path: Path, weights: Mapping[str, str], files: Mapping[str, TensorFile]) -> None:
    """Raise unless index and shards name the same tensors."""
    for name, shard in weights.items():
        if name not in files[shard].tensors:
            raise damaged(path, f"tensor {name} is not in {shard}, where the index has it")
    for shard, file in files.items():
        for name in file.tensors:
            if weights.get(name) != shard:
                raise damaged(path, f"tensor {name} of {shard} is not listed there by the index")


def _candidates(stem: str, variant: str | None) -> list[str]:
    """Names under which a component's weights are looked for, in the order of preference."""
    names = []
    for base, suffix in _stems(stem):
        if variant is None:
            names += [f"{base}.{suffix}", f"{base}.{suffix}.index.json"]
        else:
            names += [f"{base}.{variant}.{suffix}", f"{base}.{suffix}.index.{variant}.json"]
            names += [f"{base}.{suffix}.{variant}.index.json"]  # as diffusers wrote it until 0.29
    return names


def _stems(stem: str) -> list[tuple[str, str]]:
    """Stem and suffix of safetensors and of pickles; transformers has another stem for each."""
    return [(stem, "safetensors"), ("pytorch_model" if stem == "model" else stem, "bin")]


def _variants(folder: Path, stem: str) -> list[str]:
    """Variants of which a folder has weights, sorted."""
    if not folder.is_dir():
        return []
    patterns = [
        re.compile(pattern)
        for base, suffix in _stems(re.escape(stem))
        for pattern in (rf"{base}\.([\w-]+)\.{suffix}", rf"{base}\.{suffix}\.index\.([\w-]+)\.json")
    ]
    matches = (pattern.fullmatch(path.name) for path in folder.iterdir() for pattern in patterns)
    # the name of a shard looks like a variant: fp16-00001-of-00002
    found = {match.group(1) for match in matches if match}
    return sorted(name for name in found if not re.search(r"-\d{5}-of-\d{5}$", name))
