"""What is measured: presets have the sizes they are named for, folders are taken as they are, the rest is refused."""

from pathlib import Path

import jax
import numpy as np
import pytest

from ldm_jax.benchmark.ours import prepare
from ldm_jax.benchmark.presets import PRESETS, SD1_UNET, SMALL_UNET, Network, Setting, kl_f8
from ldm_jax.benchmark.subjects import Subject, describe, find_subjects, make_inputs, resize, torch_class, write_network
from ldm_jax.benchmark.task import Schedule, Task, TaskName, Training, read_task, write_inputs
from ldm_jax.config import AutoencoderKLConfig, AutoencoderVQConfig, MeshConfig, UNetConfig
from ldm_jax.errors import UserError
from ldm_jax.interop.diffusers.autoencoder import DiffusersAutoencoder, abstract_autoencoder_params
from ldm_jax.interop.diffusers.component import read_config, read_weights
from ldm_jax.interop.diffusers.unet import abstract_unet_params, read_unet_config, read_unet_params
from ldm_jax.interop.diffusers.unet_fields import DiffusersUNet
from ldm_jax.model import num_parameters
from ldm_jax.nn import attention
from ldm_jax.nn.dot_product_attention import AttentionKernel, dot_product_attention
from ldm_jax.sharding import make_mesh

UNET = DiffusersUNet(
    config=UNetConfig(base_channels=8, channel_mult=(1, 2), num_res_blocks=1, attention_levels=(0,), num_groups=4,
                      num_heads=2, num_head_channels=None),
    in_channels=4, out_channels=4, context_dim=6, sample_size=8,
)  # fmt: skip
AUTOENCODER = DiffusersAutoencoder(
    config=AutoencoderKLConfig(base_channels=8, channel_mult=(1, 2), num_res_blocks=1, num_groups=4), sample_size=10
)
VQ = DiffusersAutoencoder(config=AutoencoderVQConfig(base_channels=8, channel_mult=(1,), num_groups=4, codebook_size=4))


@pytest.mark.parametrize(
    ("unet", "millions"), [(SMALL_UNET, 18.15), (SD1_UNET, 859.52)], ids=["small", "sd1"]
)  # the latter is published
def test_the_unets_of_the_presets_have_the_sizes_they_are_named_for(unet: DiffusersUNet, millions: float):
    assert num_parameters(abstract_unet_params(unet)) / 1e6 == pytest.approx(millions, abs=0.005)


def test_the_autoencoder_of_stable_diffusion_has_the_published_size():
    assert num_parameters(abstract_autoencoder_params(kl_f8(128))) == 83_653_863


@pytest.mark.parametrize("model", PRESETS)
def test_a_preset_has_every_task_and_its_sizes_fit(model: str):
    subjects = find_subjects(model, None)
    assert list(subjects) == ["train", "sample", "train_autoencoder", "encode", "decode"]
    for name, subject in subjects.items():
        assert resize(name, subject, None, None) == subject


def test_what_is_written_is_read_again_and_nothing_in_it_is_zero(tmp_path: Path):
    write_network(UNET, tmp_path)
    assert read_unet_config(*read_config(tmp_path)) == UNET
    params = read_weights(tmp_path, read_unet_params, UNET)
    assert all(np.all(leaf != 0) for leaf in jax.tree.leaves(params))
    assert torch_class(UNET) == "UNet2DConditionModel"


def test_a_pipeline_has_the_tasks_of_both_of_its_networks_at_the_sizes_they_name(tmp_path: Path):
    write_network(UNET, tmp_path / "unet")
    write_network(AUTOENCODER, tmp_path / "vae")
    subjects = find_subjects(str(tmp_path), None)
    assert {name: (s.setting.side, s.folder) for name, s in subjects.items()} == {
        **dict.fromkeys(("train", "sample"), (8, tmp_path / "unet")),
        **dict.fromkeys(("train_autoencoder", "encode", "decode"), (10, tmp_path / "vae")),
    }
    assert list(find_subjects(str(tmp_path / "vae"), None)) == ["train_autoencoder", "encode", "decode"]


def test_a_task_that_a_model_has_no_network_for_is_refused(tmp_path: Path):
    write_network(AUTOENCODER, tmp_path)
    message = f"--only train: {tmp_path} has no network for it; usable: train_autoencoder, encode, decode"
    with pytest.raises(UserError, match=f"^{message}$"):
        find_subjects(str(tmp_path), ["train", "encode"])


def test_a_folder_that_is_none_is_refused_with_the_presets(tmp_path: Path):
    with pytest.raises(UserError, match=r"^--model \S*nothing: no such folder, and no preset; presets: small, sd1$"):
        find_subjects(str(tmp_path / "nothing"), None)
    with pytest.raises(UserError, match=r"neither a component of diffusers \(config.json\) nor a pipeline"):
        find_subjects(str(tmp_path), None)


def test_a_codebook_is_not_measured(tmp_path: Path):
    write_network(VQ, tmp_path)
    with pytest.raises(UserError, match=r"config.json: VQModel is not measured; use an AutoencoderKL"):
        find_subjects(str(tmp_path), None)


@pytest.mark.parametrize(("network", "side"), [(UNET, 7), (AUTOENCODER, 7)])
def test_a_side_that_cannot_be_halved_is_refused(network: Network, side: int):
    subject = Subject(setting=Setting(network=network, side=8, batch_size=1))
    message = "the side 7 of encode is not a multiple of 2, by which the network reduces it; nearest usable: 6 and 8"
    with pytest.raises(UserError, match=message):
        resize("encode", subject, None, side)


def test_inputs_have_pytorchs_layout_and_the_noise_that_a_task_draws():
    unet, autoencoder = (Setting(network=n, side=8, batch_size=3) for n in (UNET, AUTOENCODER))
    shapes = {
        name: {key: x.shape for key, x in make_inputs(name, setting).items()}
        for name, setting in {
            "train": unet,
            "sample": unet,
            "train_autoencoder": autoencoder,
            "decode": autoencoder,
        }.items()
    }
    given = {"sample": (3, 4, 8, 8), "timestep": (3,), "encoder_hidden_states": (3, 77, 6)}
    assert shapes == {
        "train": {**given, "noise": (3, 4, 8, 8)},
        "sample": given,
        "train_autoencoder": {"sample": (3, 3, 8, 8), "noise": (3, 4, 4, 4)},
        "decode": {"latents": (3, 4, 4, 4)},
    }


def test_a_task_is_told_in_words():
    assert describe(Setting(network=UNET, side=8, batch_size=3), 50) == (
        "8x8x4 latents, batch 3, context 77x6, 50 DDIM steps"
    )
    assert describe(Setting(network=AUTOENCODER, side=8, batch_size=3), None) == "8x8 pixels, batch 3"


def test_both_sides_read_the_same_task(tmp_path: Path):
    task = Task(
        name="sample", folder="f", torch_class="c", inputs="i", batch_size=2, threads=3,
        training=Training(learning_rate=1.0), schedule=Schedule(beta_end=0.5),
    )  # fmt: skip
    task.write(tmp_path / "task.json")
    assert read_task(tmp_path / "task.json") == task


def test_tolerances_are_those_of_rounding():
    exact = Task(name="decode", folder="f", torch_class="c", inputs="i", batch_size=2)
    rounded = Task(name="decode", folder="f", torch_class="c", inputs="i", batch_size=2, dtype="bfloat16")
    assert (exact.tolerance("cpu"), exact.tolerance("gpu"), rounded.tolerance("cpu")) == (1e-4, 0.1, 0.1)


@pytest.mark.parametrize(("name", "network"), [("sample", UNET), ("decode", AUTOENCODER)])
def test_our_side_takes_the_attention_of_training(name: TaskName, network: Network, tmp_path: Path, monkeypatch):
    """And not the one with all weights in memory, which is every module's default."""
    setting, mesh, taken = (
        Setting(network=network, side=8, batch_size=1),
        make_mesh(MeshConfig(data=1), jax.devices()[:1]),
        [],
    )

    def attend(*arrays, kernel: AttentionKernel, causal: bool):
        taken.append(kernel.kind)
        return dot_product_attention(*arrays, kernel=kernel, causal=causal)

    write_network(network, tmp_path / "network")
    write_inputs(tmp_path / "inputs.npz", make_inputs(name, setting))
    monkeypatch.setattr(attention, "dot_product_attention", attend)
    prepare(
        Task(
            name=name,
            folder=str(tmp_path / "network"),
            torch_class=torch_class(network),
            inputs=str(tmp_path / "inputs.npz"),
            batch_size=1,
            num_sample_steps=2,
        ),
        mesh,
    )
    assert set(taken) == {AttentionKernel.choose("auto", mesh).kind} != {"reference"}
