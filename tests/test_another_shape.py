"""A checkpoint of eight devices goes on with fewer, and with other axes: the same numbers, then the same data."""

import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_loop import CONFIG, Killed, Toy, at, kill

from ldm_jax import sharding
from ldm_jax.config import MeshConfig
from ldm_jax.training.checkpoint_contents import digest_checkpoint, digest_items
from ldm_jax.training.checkpoints import abstract_like
from ldm_jax.training.loop import to_items
from ldm_jax.training.run_folder import RunFolder

pytestmark = pytest.mark.slow  # kills, crashes and whole runs

BIG = {"layer_big": {"query": {"kernel": np.random.default_rng(0).normal(size=(64, 128)).astype(np.float32)}}}
"""A parameter large enough to be split, over `tensor` and over `fsdp`."""


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on 2 x 2 x 2 devices that was killed behind the checkpoint of its fourth step."""
    mesh = sharding.make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    toy = Toy(tmp_path_factory.mktemp("begun") / "run", mesh, CONFIG, initial=BIG)
    toy.change = at(6, kill)
    with pytest.raises(Killed):
        toy.run()
    assert toy.saved() == [2, 4]
    return toy.path


@pytest.mark.parametrize(
    ("count", "axes"),
    [
        (1, {}),
        (2, {"data": 1, "fsdp": 2}),
        (4, {"data": 1, "fsdp": 2, "tensor": 2}),
        (8, {"data": 8}),
        (8, {"data": 1, "fsdp": 8}),
    ],
)
def test_it_goes_on_with_other_devices(begun: Path, tmp_path: Path, count: int, axes: dict[str, int]):
    path = Path(shutil.copytree(begun, tmp_path / "run"))
    mesh = sharding.make_mesh(MeshConfig(**axes), jax.devices()[:count])
    read: list[int] = []

    def note(step: int, batch: Any) -> Any:
        read.append(step)
        return batch

    toy = Toy(path, mesh, CONFIG, change=note, initial=BIG)
    checkpoints = RunFolder(path).checkpoints("toy")
    before = digest_checkpoint(checkpoints.folder(4), 4, 32)
    stage = toy.stage()
    wanted = to_items(jax.eval_shape(stage.init, jax.random.key(0), stage.frozen, stage.initial))
    restored = checkpoints.restore(4, abstract_like(wanted, sharding.state_shardings(mesh, wanted)))
    assert digest_items(restored, 4, 32) == before
    kernel = restored["training"]["params"]["layer_big"]["query"]["kernel"]
    assert kernel.sharding.spec == sharding.parameter_spec(("query", "kernel"), (64, 128), mesh)
    state = toy.run()
    assert read == [5, 6]  # the same examples as would have come
    assert int(state.step) == CONFIG.num_steps


def test_all_shapes_end_alike(begun: Path, tmp_path: Path):
    ends = []
    for count in (1, 2, 8):
        path = Path(shutil.copytree(begun, tmp_path / f"run{count}"))
        toy = Toy(path, sharding.make_mesh(MeshConfig(), jax.devices()[:count]), CONFIG, initial=BIG)
        ends.append((toy.run(), [line["loss"] for line in toy.metrics()]))
    for state, losses in ends[1:]:
        np.testing.assert_allclose(losses, ends[0][1], rtol=1e-5)
        close = lambda a, b: np.testing.assert_allclose(jnp.asarray(a), jnp.asarray(b), rtol=1e-5, atol=1e-6)  # noqa: E731
        jax.tree.map(close, jax.device_get(state), jax.device_get(ends[0][0]))
