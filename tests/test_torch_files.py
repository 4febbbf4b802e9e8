"""Against the real thing: what PyTorch saves is read equal, what is written PyTorch reads, and memory stays small."""

import subprocess
import sys
from collections import OrderedDict
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from ldm_jax.errors import UserError
from ldm_jax.files.weight_files import find_weights, open_tensors
from ldm_jax.files.write_safetensors import save_weights, write_safetensors

pytestmark = pytest.mark.slow
torch: Any = pytest.importorskip("torch")

DTYPES = ["float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool"]


def to_numpy(tensor: Any) -> np.ndarray:
    tensor = tensor.detach().contiguous()
    if tensor.dtype is torch.bfloat16:
        return tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return tensor.numpy()


def views() -> dict[str, Any]:
    base = torch.arange(60, dtype=torch.float32).reshape(3, 4, 5)
    typed = {name: (torch.arange(12) % 3).to(getattr(torch, name)).reshape(3, 4) for name in DTYPES}
    return {
        **typed,
        "transposed": base.permute(2, 0, 1),
        "strided": base[::2, 1:, ::3],
        "shared": base[1],
        "expanded": torch.ones(1, 3).expand(4, 3),
        "scalar": torch.tensor(2.5),
        "empty": torch.zeros(0, 3),
        "parameter": torch.nn.Parameter(base[0, 0]),
        "parameter_of_halves": torch.nn.Parameter(torch.ones(3).half(), requires_grad=False),
    }


@pytest.mark.parametrize("new_format", [True, False])
@pytest.mark.parametrize("protocol", [2, 4])
def test_what_torch_saves_is_read(tmp_path: Path, new_format: bool, protocol: int):
    tensors = views()
    path = tmp_path / "a.ckpt"
    content = {"state_dict": OrderedDict(tensors), "global_step": 7, "shape": torch.Size([1, 2])}
    torch.save(content, path, _use_new_zipfile_serialization=new_format, pickle_protocol=protocol)
    with open_tensors(path) as file:
        assert file.names() == tuple(tensors)
        assert file.metadata == {"global_step": 7}
        for name, tensor in tensors.items():
            read, expected = file.read(name), to_numpy(tensor)
            assert (file.shape(name), file.dtype(name)) == (expected.shape, expected.dtype)
            assert read.dtype == expected.dtype
            np.testing.assert_array_equal(read, expected)


@pytest.mark.parametrize("new_format", [True, False])
def test_a_state_dict_and_an_optimizer(tmp_path: Path, new_format: bool):
    """A module's state dict has `_metadata`, an optimizer's has nested dicts of tensors."""
    net = torch.nn.Sequential(torch.nn.Conv2d(2, 3, 3), torch.nn.BatchNorm2d(3))
    optimizer = torch.optim.AdamW(net.parameters())
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, [2, 4])
    net(torch.ones(1, 2, 5, 5)).sum().backward()
    optimizer.step()
    content = {
        "state_dict": net.state_dict(),
        "optimizer_states": [optimizer.state_dict()],
        "lr_schedulers": [schedule.state_dict()],
        "score": np.float32(0.5),
        "scores": np.arange(3.0),
        "device": torch.device("cpu"),
    }
    torch.save(content, tmp_path / "a.ckpt", _use_new_zipfile_serialization=new_format)
    with open_tensors(tmp_path / "a.ckpt") as file:
        assert file.metadata == {"score": 0.5}
        for name, tensor in net.state_dict().items():
            np.testing.assert_array_equal(file.read(name), to_numpy(tensor))


def test_a_whole_module_is_refused(tmp_path: Path):
    torch.save(torch.nn.Linear(2, 3), tmp_path / "a.pt")
    with pytest.raises(UserError, match=r"asks for torch\.nn\.modules\.linear\.Linear, which is neither tensor nor"):
        open_tensors(tmp_path / "a.pt")


def test_what_safetensors_saves_is_read(tmp_path: Path):
    from safetensors.torch import save_file

    tensors = {name: tensor.detach().contiguous().clone() for name, tensor in views().items()}
    tensors["float8"] = torch.arange(6.0).to(torch.float8_e4m3fn)
    save_file(tensors, tmp_path / "a.safetensors", metadata={"format": "pt"})
    with open_tensors(tmp_path / "a.safetensors") as file:
        assert set(file.names()) == set(tensors)
        assert file.read("float8").dtype == ml_dtypes.float8_e4m3fn
        np.testing.assert_array_equal(file.read("float8").astype(np.float32), np.arange(6.0))
        for name in set(tensors) - {"float8"}:
            assert file.dtype(name) == to_numpy(tensors[name]).dtype
            np.testing.assert_array_equal(file.read(name), to_numpy(tensors[name]))


@pytest.mark.parametrize("dtype", [None, "float32", "float16", "bfloat16"])
def test_torch_reads_what_is_written(tmp_path: Path, dtype: Any):
    from safetensors.torch import load_file

    arrays = {name: to_numpy(tensor) for name, tensor in views().items()}
    write_safetensors(tmp_path / "a.safetensors", arrays, dtype=dtype)
    read = load_file(tmp_path / "a.safetensors")
    assert set(read) == set(arrays)
    for name, tensor in views().items():
        is_rounded = dtype is not None and tensor.is_floating_point()
        expected = tensor.detach().to(getattr(torch, dtype)) if is_rounded else tensor.detach()
        assert read[name].dtype is expected.dtype
        assert torch.equal(read[name], expected), name


@pytest.mark.parametrize("variant", [None, "fp16"])
@pytest.mark.parametrize("size", [10**9, 2000])
def test_diffusers_reads_what_is_written_and_the_other_way_round(tmp_path: Path, variant: str | None, size: int):
    diffusers = pytest.importorskip("diffusers")
    stem = "diffusion_pytorch_model"
    net = diffusers.AutoencoderKL(block_out_channels=(4,), norm_num_groups=2, latent_channels=1)
    net.save_pretrained(tmp_path / "theirs", variant=variant, max_shard_size=size)
    with open_tensors(find_weights(tmp_path / "theirs", stem, variant)) as file:
        arrays = {name: file.read(name) for name in file.names()}
    for name, tensor in net.state_dict().items():
        np.testing.assert_array_equal(arrays.pop(name), to_numpy(tensor))
    assert arrays == {}

    arrays = {name: to_numpy(tensor) + 1 for name, tensor in net.state_dict().items()}
    save_weights(tmp_path / "ours", stem, arrays, variant=variant, max_shard_bytes=size)
    net.save_config(tmp_path / "ours")
    theirs = {path.name for path in (tmp_path / "theirs").iterdir()}
    if size == 10**9:
        assert {path.name for path in (tmp_path / "ours").iterdir()} == theirs
    read = diffusers.AutoencoderKL.from_pretrained(tmp_path / "ours", variant=variant)
    for name, tensor in net.state_dict().items():
        assert torch.equal(read.state_dict()[name], tensor + 1)


STREAM = """
import functools, sys
from pathlib import Path
import numpy as np
from ldm_jax.benchmark.service import peak_memory
from ldm_jax.files.weight_files import open_tensors
from ldm_jax.files.write_safetensors import LazyTensor, write_safetensors

with open_tensors(Path(sys.argv[1])) as file:
    before = peak_memory()
    tensors = {
        name: LazyTensor(shape=file.shape(name), dtype=file.dtype(name), read=functools.partial(file.read, name))
        for name in file.names()
    }
    write_safetensors(Path(sys.argv[2]), tensors, dtype="float16")
    sys.stdout.write(str(peak_memory() - before))
"""


@pytest.mark.parametrize("kind", ["safetensors", "ckpt", "legacy"])
def test_a_gigabyte_streams_through_little_memory(tmp_path: Path, kind: str):
    """Reading 1 GB tensor by tensor and writing it as float16 takes a few tensors' worth of memory."""
    from safetensors.torch import save_file

    tensors = {f"t{i}": torch.full((16, 1024, 1024), float(i)) for i in range(16)}
    path = tmp_path / f"a.{'safetensors' if kind == 'safetensors' else 'ckpt'}"
    if kind == "safetensors":
        save_file(tensors, path)
    else:
        torch.save({"state_dict": tensors}, path, _use_new_zipfile_serialization=kind == "ckpt")
    assert path.stat().st_size > 2**30
    del tensors
    command = [sys.executable, "-c", STREAM, str(path), str(tmp_path / "out.safetensors")]
    grown = int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    assert grown < 5 * 64 * 2**20
    with open_tensors(tmp_path / "out.safetensors") as file:
        assert file.read("t15")[0, 0, 0] == 15
    path.unlink()
    (tmp_path / "out.safetensors").unlink()
