"""Whole files of the original code: PyTorch's numbers, moving averages, buffers, and there and back."""

import dataclasses
import functools
import logging
from pathlib import Path
from typing import Any

import jax
import ml_dtypes
import numpy as np
import pytest
import yaml
from foreign_tensors import Tensors, assert_close, random_tensors_of
from module_trials import compiled, random_array
from safetensors.numpy import load_file
from test_original_text import STAGES, tensors_of
from test_original_yaml import CLASSES, PLAIN, changed, project, stage
from tiny import random_params

from ldm_jax.conditioning.conditions import Conditions
from ldm_jax.config import ScheduleConfig
from ldm_jax.diffusion.schedule import make_schedule
from ldm_jax.errors import UserError
from ldm_jax.interop.mapping import Prefixed
from ldm_jax.interop.original.buffers import KNOWN, engine_buffers, schedule_buffers
from ldm_jax.interop.original.checkpoint import checkpoint_tensors, read_checkpoint
from ldm_jax.interop.original.project import OriginalProject, describe_project
from ldm_jax.interop.original.project_file import parse_project, read_project
from ldm_jax.interop.original.project_file_export import project_yaml
from ldm_jax.interop.original.text_options import TextStageKind
from ldm_jax.interop.original.unet_options import Library
from ldm_jax.model import Params, make_model

GOLDEN = Path(__file__).parent / "golden"
CASES = ("compvis_ldm_uncond_vq", "compvis_ldm_class_vq")


def same(one: Any, other: Any) -> bool:
    """Whether two trees of parameters are the same to the bit."""
    equal = jax.tree.map(lambda a, b: np.array_equal(a, b) and a.dtype == b.dtype, one, other)
    return jax.tree.all(equal)


@functools.cache
def golden(case: str) -> tuple[OriginalProject, Tensors, dict[str, np.ndarray]]:
    """Project, tensors and arrays of a case, pictures and latents as NHWC."""
    found = read_project(GOLDEN / case / "project.yaml")
    assert isinstance(found, OriginalProject)
    with np.load(GOLDEN / case / "io.npz") as arrays:
        io = {name: np.moveaxis(a, 1, -1) if a.ndim == 4 else a for name, a in arrays.items()}
    return found, Tensors(load_file(GOLDEN / case / "model.safetensors")), io


@pytest.mark.parametrize("case", CASES)
def test_it_computes_what_pytorch_computes(case: str) -> None:
    found, tensors, io = golden(case)
    params, model = read_checkpoint(tensors, found, where=case), make_model(found.experiment())

    def run(params: Params, io: dict) -> dict:
        z = model.encode(params, io["image"]).mode()
        quantized, indices = model.autoencoder.apply({"params": params["autoencoder"]}, z, method="quantize")
        labels = {"class_labels": io["class_label"]} if "class_label" in io else {}
        unet_out = model.denoise(params, io["x"], io["timestep"], model.condition(params, labels))
        outputs = {"latents": z, "quantized": quantized, "indices": indices, "unet_out": unet_out}
        return outputs | {"reconstruction": model.decode(params, z)}

    outputs = compiled(run)(params, io)
    np.testing.assert_array_equal(outputs["indices"], io["indices"])
    for name in ("latents", "quantized", "unet_out", "reconstruction"):
        assert_close(outputs[name], io[name])


@pytest.mark.parametrize("case", CASES)
def test_parameters_fit_the_experiment_and_come_back_to_the_bit(case: str) -> None:
    found, tensors, _ = golden(case)
    params, experiment = read_checkpoint(tensors, found, where=case), found.experiment()
    shapes = jax.eval_shape(make_model(experiment).init, jax.random.key(0))
    assert jax.tree.map(np.shape, params) == jax.tree.map(np.shape, shapes)
    described = describe_project(experiment, params)
    assert described == dataclasses.replace(found, use_ema=False)
    again = parse_project(yaml.safe_load(project_yaml(described)), "back")
    assert again == described
    written = Tensors(checkpoint_tensors(params, described))
    assert set(tensors) | {name for name, _ in schedule_buffers(ScheduleConfig())} == set(written)
    assert same(read_checkpoint(written, described, where="back"), params)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float32, np.float64])
def test_every_type_of_storage_is_read_as_float32(dtype: Any) -> None:
    found, tensors, _ = golden(CASES[0])
    stored = Tensors({name: tensor.astype(np.float32).astype(dtype) for name, tensor in tensors.items()})
    params = read_checkpoint(stored, found, where="f")
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {np.dtype(np.float32)}
    if dtype != ml_dtypes.bfloat16:
        assert same(params, read_checkpoint(tensors, found, where="f"))


# --- moving averages, scale, other tensors ---------------------------------------------------------------------------


def with_averages() -> Tensors:
    _, tensors, _ = golden(CASES[0])
    unet, prefix = Prefixed(tensors, "model.diffusion_model."), "model_ema.diffusion_model"
    averages = {prefix + name.replace(".", ""): np.float32(2) * unet.read(name) for name in unet.names()}
    counters = {"model_ema.decay": np.float32(0.9999), "model_ema.num_updates": np.int32(7)}
    return Tensors(tensors | averages | counters)


@pytest.mark.parametrize(
    ("weights", "use_ema", "averaged"),
    [("auto", True, True), ("auto", False, False), ("ema", False, True), ("raw", True, False)],
)
def test_moving_averages_are_chosen(weights: Any, use_ema: bool, averaged: bool) -> None:
    found, tensors, _ = golden(CASES[0])
    plain = read_checkpoint(tensors, found, where="f")
    found = dataclasses.replace(found, use_ema=use_ema)
    params = read_checkpoint(with_averages(), found, where="f", weights=weights)
    factor = np.float32(2 if averaged else 1)
    assert same(params["denoiser"], jax.tree.map(lambda x: factor * x, plain["denoiser"]))
    assert same(params["autoencoder"], plain["autoencoder"])


def test_moving_averages_that_are_not_there_are_asked_for_in_vain() -> None:
    found, tensors, _ = golden(CASES[0])
    with pytest.raises(UserError, match=r"^model.ckpt has no moving averages \(model_ema\.\*\); use weights=raw$"):
        read_checkpoint(tensors, found, where="model.ckpt", weights="ema")
    damaged = with_averages()
    del damaged["model_ema.diffusion_modelout2bias"]
    with pytest.raises(
        UserError, match=r"^model.ckpt \(model_ema.diffusion_model\*\) does not hold(.|\n)*missing: out2"
    ):
        read_checkpoint(damaged, found, where="model.ckpt")


def test_averages_of_the_first_stage_are_taken_when_asked_for() -> None:
    found, _, _ = golden(CASES[0])
    tensors = with_averages()
    first = Prefixed(tensors, "first_stage_model.")
    names = [name for name in first.names() if not name.startswith("model_ema.")]
    averages = {f"first_stage_model.model_ema.{n.replace('.', '')}": np.float32(3) * first.read(n) for n in names}
    tensors = Tensors(tensors | averages)
    raw, ema = (read_checkpoint(tensors, found, where="f", weights=w)["autoencoder"] for w in ("auto", "ema"))
    assert same(ema, jax.tree.map(lambda x: np.float32(3) * x, raw))


def test_a_measured_scale_factor_is_the_file_s() -> None:
    found, tensors, _ = golden(CASES[0])
    found = dataclasses.replace(found, scale_factor=0.5)
    np.testing.assert_array_equal(read_checkpoint(tensors, found, where="f")["latent"]["std"], [2, 2, 2])
    measured = Tensors(tensors | {"scale_factor": np.array(0.25, np.float16)})
    np.testing.assert_array_equal(read_checkpoint(measured, found, where="f")["latent"]["std"], [4, 4, 4])


def test_known_buffers_are_left_out_and_other_tensors_are_refused() -> None:
    found, tensors, _ = golden(CASES[0])
    buffers = {name: np.ones(3) for name in KNOWN if name != "scale_factor"}
    plain = read_checkpoint(tensors, found, where="f")
    assert same(read_checkpoint(Tensors(tensors | buffers), found, where="f"), plain)
    unknown = Tensors(tensors | {"model.other.weight": np.ones(1), "cond_stage_model.embedding.weight": np.ones(1)})
    with pytest.raises(UserError) as error:
        read_checkpoint(unknown, found, where="model.ckpt")
    assert str(error.value).splitlines() == [
        "model.ckpt holds tensors that its project file does not describe:",
        "  cond_stage_model.embedding.weight",
        "  model.other.weight",
    ]
    many = Tensors(tensors | {f"x{i:02}": np.ones(1) for i in range(22)})
    with pytest.raises(UserError, match=r"x19\n  and 2 more$"):
        read_checkpoint(many, found, where="f")


def test_the_first_stage_may_stand_there_once_more_as_conditioning_stage() -> None:
    _, tensors, _ = golden(CASES[0])
    found = project(PLAIN, {"in_channels": 7}, cond_stage_config="__is_first_stage__")
    wide = dict(tensors)
    wide["model.diffusion_model.input_blocks.0.0.weight"] = np.ones((32, 7, 3, 3), np.float16)
    again = {n.replace("first_", "cond_", 1): t for n, t in tensors.items() if n.startswith("first_stage_model.")}
    params = read_checkpoint(Tensors(wide | again), found, where="f")
    assert params["conditioner"] == {}
    written = Tensors(checkpoint_tensors(params, found))
    assert same(read_checkpoint(written, found, where="f"), params)


def test_makers_of_conditions_outside_of_the_model_are_left_out_with_a_line(caplog: pytest.LogCaptureFixture) -> None:
    found, tensors, _ = golden(CASES[0])
    found = dataclasses.replace(found, other_stages=("low_scale_model",))
    with caplog.at_level(logging.INFO):
        read_checkpoint(Tensors(tensors | {"low_scale_model.betas": np.ones(3)}), found, where="f")
    assert caplog.messages == ["f: 1 tensors of low_scale_model are left out"]


# --- conditioning stages ---------------------------------------------------------------------------------------------


def test_a_channel_mapper_is_a_convolution_there() -> None:
    _, tensors, _ = golden(CASES[0])
    rescaler = stage("SpatialRescaler", n_stages=1, in_channels=9, out_channels=3)
    found = project(PLAIN, {"in_channels": 6}, cond_stage_config=rescaler)
    shape = {"cond_stage_model.channel_mapper.weight": (3, 9, 1, 1)}
    wide = random_tensors_of({"model.diffusion_model.input_blocks.0.0.weight": (32, 6, 3, 3)} | shape)
    params = read_checkpoint(Tensors(tensors | wide), found, where="f")
    kernel = wide["cond_stage_model.channel_mapper.weight"][:, :, 0, 0].T
    np.testing.assert_array_equal(params["conditioner"]["channel_mapper"]["kernel"], kernel)
    written = Tensors(checkpoint_tensors(params, found))
    np.testing.assert_array_equal(written["cond_stage_model.channel_mapper.weight"], wide[next(iter(shape))])


def test_labels_alone_need_no_table_in_the_file() -> None:
    _, tensors, io = golden(CASES[0])
    found = project(PLAIN, {"num_classes": 4}, cond_stage_config=stage("torch.nn.Identity"))
    tensors = Tensors(tensors | random_tensors_of({"model.diffusion_model.label_emb.weight": (4, 128)}))
    params, model = read_checkpoint(tensors, found, where="f"), make_model(found.experiment())
    labels = {"class_labels": np.array([1, 3])}
    predict = compiled(lambda p, x, t, c: model.denoise(p, x, t, model.condition(p, c)))
    out = predict(params, io["x"], io["timestep"], labels)
    assert np.abs(out - io["unet_out"]).max() > 1e-3
    written = Tensors(checkpoint_tensors(params, found))
    assert not [name for name in written if name.startswith("cond_stage_model")]
    assert same(read_checkpoint(written, found, where="f"), params)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "library", "prefix"),
    [
        ("bert", "ldm", "cond_stage_model."),
        ("clip", "ldm", "cond_stage_model."),
        ("open_clip", "ldm", "cond_stage_model."),
        ("open_clip", "sgm", "conditioner.embedders.0."),
        ("sdxl", "sgm", "conditioner."),
    ],
)
def test_text_encoders_stand_among_the_rest(kind: TextStageKind, library: Library, prefix: str) -> None:
    found, tensors, _ = golden(CASES[0])
    found = dataclasses.replace(found, conditioning=STAGES[kind].config, library=library)
    texts = {prefix + name: tensor for name, tensor in tensors_of(STAGES[kind]).items()}
    params = read_checkpoint(Tensors(tensors | texts), found, where="f")
    written = Tensors(checkpoint_tensors(params, found))
    assert {name for name in written if name.startswith(prefix)} == set(texts)
    for name, tensor in texts.items():
        np.testing.assert_array_equal(written[name], tensor)
    damaged = Tensors(tensors | texts)
    del damaged[next(iter(texts))]
    with pytest.raises(UserError, match=rf"^model.ckpt \({prefix}\*\) does not hold(.|\n)*missing: "):
        read_checkpoint(damaged, found, where="model.ckpt")


# --- buffers ---------------------------------------------------------------------------------------------------------


def test_buffers_hold_the_schedule() -> None:
    config = ScheduleConfig(num_train_timesteps=50)
    buffers, schedule = dict(schedule_buffers(config)), make_schedule(config)
    assert {buffer.dtype for buffer in buffers.values()} == {np.dtype(np.float32)}
    np.testing.assert_array_equal(buffers["betas"], schedule.beta)
    np.testing.assert_allclose(np.cumprod(1 - buffers["betas"].astype(float)), buffers["alphas_cumprod"], rtol=1e-6)
    assert buffers["alphas_cumprod_prev"][0] == 1 and buffers["posterior_variance"][0] == 0
    assert np.isclose(buffers["posterior_log_variance_clipped"][0], np.log(1e-20))
    # the posterior's mean, of z_t without noise, is z_{t-1} without noise
    mean = buffers["posterior_mean_coef1"] + buffers["posterior_mean_coef2"] * buffers["sqrt_alphas_cumprod"]
    np.testing.assert_allclose(mean, np.sqrt(buffers["alphas_cumprod_prev"]), rtol=1e-6)
    sigmas = dict(engine_buffers(config))["denoiser.sigmas"]
    np.testing.assert_allclose(sigmas, buffers["sqrt_recipm1_alphas_cumprod"], rtol=1e-6)
    assert np.all(np.diff(sigmas) > 0)


# --- an independent reader -------------------------------------------------------------------------------------------


_VQ = CLASSES["model"]["params"]["first_stage_config"]["params"]
KL_STAGE = {
    "target": "ldm.models.autoencoder.AutoencoderKL",
    "params": {"embed_dim": 3, "ddconfig": _VQ["ddconfig"] | {"double_z": True, "attn_resolutions": []}},
}


@pytest.mark.slow
def test_diffusers_reads_what_is_written_and_computes_the_same() -> None:
    """Its own conversion of single files is another reader of the same format."""
    torch, diffusers = pytest.importorskip("torch"), pytest.importorskip("diffusers")
    convert = pytest.importorskip("diffusers.loaders.single_file_utils")
    values = changed(CLASSES, first_stage_config=KL_STAGE)
    unet = values["model"]["params"]["unet_config"]["params"]
    unet["num_heads"] = 4
    del unet["num_head_channels"]
    found = parse_project(values, "f")
    assert isinstance(found, OriginalProject)
    model = make_model(found.experiment())
    params = random_params(model)
    tensors = {name: torch.tensor(tensor) for name, tensor in checkpoint_tensors(params, found)}
    written = yaml.safe_load(project_yaml(found))

    x, t, labels = random_array(2, 16, 16, 3), np.array([3, 800]), np.array([1, 4])
    image = random_array(2, 32, 32, 3, seed=1)
    context = np.asarray(params["conditioner"]["embedding"]["embedding"])[labels][:, None]
    ours = compiled(lambda p, x, t, c: model.denoise(p, x, t, Conditions(context=c)))(params, x, t, context)
    config = convert.create_unet_diffusers_config_from_ldm(written, tensors)
    network = diffusers.UNet2DConditionModel(**config).eval()
    network.load_state_dict(convert.convert_ldm_unet_checkpoint(tensors, config))
    with torch.no_grad():
        theirs = network(torch.tensor(np.moveaxis(x, -1, 1)), torch.tensor(t), torch.tensor(context)).sample
    assert_close(ours, np.moveaxis(theirs.numpy(), 1, -1))

    moments = compiled(lambda p, x: model.encode(p, x).moments)(params, image)
    config = convert.create_vae_diffusers_config_from_ldm(written, tensors)
    vae = diffusers.AutoencoderKL(**config).eval()
    vae.load_state_dict(convert.convert_ldm_vae_checkpoint(tensors, config))
    with torch.no_grad():
        posterior = vae.encode(torch.tensor(np.moveaxis(image, -1, 1))).latent_dist
    theirs = np.concatenate([posterior.mean.numpy(), posterior.logvar.numpy()], 1)
    assert_close(moments, np.moveaxis(theirs, 1, -1))
