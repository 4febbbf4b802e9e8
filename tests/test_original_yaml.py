"""Project files of the original code: what they become, every refusal, and back."""

import copy
import dataclasses
from pathlib import Path
from typing import Any

import pytest
import yaml
from test_original_text_options import SD2

from ldm_jax.config import (
    AutoencoderVQConfig,
    ClassConditioning,
    ClipTextConditioning,
    EmbeddingConditioning,
    ScheduleConfig,
    SdxlConditioning,
    SpatialConditioning,
    Unconditional,
    load_experiment,
)
from ldm_jax.errors import UserError
from ldm_jax.interop.latents import latent_params
from ldm_jax.interop.original.autoencoder import OriginalAutoencoder
from ldm_jax.interop.original.conditioning import options_of_conditioning
from ldm_jax.interop.original.project import OriginalProject, Unsaid, scale_factor_of
from ldm_jax.interop.original.project_file import parse_project, parse_yaml, read_project
from ldm_jax.interop.original.project_file_export import project_yaml

GOLDEN = Path(__file__).parent / "golden"
ENCODERS = "ldm.modules.encoders.modules."
CLASSES = yaml.safe_load((GOLDEN / "compvis_ldm_class_vq" / "project.yaml").read_text())
PLAIN = yaml.safe_load((GOLDEN / "compvis_ldm_uncond_vq" / "project.yaml").read_text())


def stage(name: str, **params: Any) -> dict[str, Any]:
    return {"target": name if "." in name else ENCODERS + name, "params": params}


def changed(base: dict, unet: dict | None = None, target: str | None = None, **params: Any) -> dict[str, Any]:
    values = copy.deepcopy(base)
    model = values["model"]
    model["params"] |= params
    model["params"]["unet_config"]["params"] |= unet or {}
    model["target"] = target or model["target"]
    return values


def project(base: dict, unet: dict | None = None, target: str | None = None, **params: Any) -> OriginalProject:
    found = parse_project(changed(base, unet, target, **params), "project.yaml")
    assert isinstance(found, OriginalProject)
    return found


def text(name: str, width: int, unet: dict | None = None, target: str | None = None, **params: Any) -> OriginalProject:
    return project(CLASSES, {"context_dim": width} | (unet or {}), target, cond_stage_config=stage(name, **params))


def variant(name: str) -> str:
    return f"ldm.models.diffusion.ddpm.{name}"


ENGINE = {
    "scale_factor": 0.13025,
    "disable_first_stage_autocast": True,
    "denoiser_config": {
        "target": "sgm.modules.diffusionmodules.denoiser.DiscreteDenoiser",
        "params": {
            "num_idx": 1000,
            "scaling_config": {"target": "sgm.modules.diffusionmodules.denoiser_scaling.EpsScaling"},
            "discretization_config": {"target": "sgm.modules.diffusionmodules.discretizer.LegacyDDPMDiscretization"},
        },
    },
    "network_config": {
        "target": "sgm.modules.diffusionmodules.openaimodel.UNetModel",
        "params": {
            "adm_in_channels": 1280 + 6 * 8,
            "num_classes": "sequential",
            "in_channels": 4,
            "out_channels": 4,
            "model_channels": 32,
            "attention_resolutions": [2],
            "num_res_blocks": 1,
            "channel_mult": [1, 2],
            "num_head_channels": 16,
            "use_linear_in_transformer": True,
            "transformer_depth": [1, 2],
            "context_dim": 2048,
            "spatial_transformer_attn_type": "softmax-xformers",
        },
    },
    "conditioner_config": {
        "target": "sgm.modules.GeneralConditioner",
        "params": {
            "emb_models": [
                {
                    "is_trainable": False,
                    "input_key": "txt",
                    "target": "sgm.modules.encoders.modules.FrozenCLIPEmbedder",
                    "params": {"layer": "hidden", "layer_idx": 11},
                },
                {
                    "is_trainable": False,
                    "input_key": "txt",
                    "target": "sgm.modules.encoders.modules.FrozenOpenCLIPEmbedder2",
                    "params": {
                        "arch": "ViT-bigG-14",
                        "version": "laion2b_s39b_b160k",
                        "freeze": True,
                        "layer": "penultimate",
                        "always_return_pooled": True,
                        "legacy": False,
                    },
                },
                *(
                    {
                        "input_key": key,
                        "target": "sgm.modules.encoders.modules.ConcatTimestepEmbedderND",
                        "params": {"outdim": 8},
                    }
                    for key in ("original_size_as_tuple", "crop_coords_top_left", "target_size_as_tuple")
                ),
            ]
        },
    },
    "first_stage_config": {
        "target": "sgm.models.autoencoder.AutoencoderKL",
        "params": {
            "embed_dim": 4,
            "ddconfig": {
                "attn_type": "vanilla-xformers",
                "double_z": True,
                "z_channels": 4,
                "resolution": 256,
                "in_channels": 3,
                "out_ch": 3,
                "ch": 32,
                "ch_mult": [1, 2],
                "num_res_blocks": 1,
                "attn_resolutions": [],
                "dropout": 0.0,
            },
        },
    },
}


def engine(**params: Any) -> OriginalProject:
    values = {"model": {"target": "sgm.models.diffusion.DiffusionEngine", "params": copy.deepcopy(ENGINE) | params}}
    found = parse_project(values, "project.yaml")
    assert isinstance(found, OriginalProject)
    return found


def test_a_project_without_conditions() -> None:
    found = read_project(GOLDEN / "compvis_ldm_uncond_vq" / "project.yaml")
    assert isinstance(found, OriginalProject)
    assert isinstance(found.autoencoder.config, AutoencoderVQConfig)
    assert found.conditioning == Unconditional() and found.unet.context_dim is None
    assert found.diffusion.schedule == ScheduleConfig(kind="scaled_linear", beta_start=0.0015, beta_end=0.0195)
    assert (found.image_size, found.scale_factor, found.use_ema, found.library) == (32, 1.0, True, "ldm")
    assert found.experiment("mine").name == "mine"


@pytest.mark.parametrize(
    ("params", "null_class", "expected"),
    [
        ({"n_classes": 5}, None, ClassConditioning(num_classes=5, null_class=False, context_dim=24)),
        ({"n_classes": 5}, True, ClassConditioning(num_classes=4, null_class=True, context_dim=24)),
        ({"n_classes": 5, "ucg_rate": 0.1}, None, ClassConditioning(num_classes=4, null_class=True, context_dim=24)),
        ({"n_classes": 1001}, None, ClassConditioning(num_classes=1000, null_class=True, context_dim=24)),
        ({"n_classes": 1001}, False, ClassConditioning(num_classes=1001, null_class=False, context_dim=24)),
        ({}, None, ClassConditioning(num_classes=1000, null_class=False, context_dim=24)),
    ],
)
def test_the_last_of_1001_classes_is_none(params: dict, null_class: bool | None, expected: Any) -> None:
    values = changed(CLASSES, cond_stage_config=stage("ClassEmbedder", embed_dim=24, key="class_label", **params))
    found = parse_project(values, "f", Unsaid(null_class=null_class))
    assert isinstance(found, OriginalProject) and found.conditioning == expected


@pytest.mark.parametrize(
    ("found", "conditioning", "concat_channels"),
    [
        pytest.param(
            project(PLAIN, {"in_channels": 6}, cond_stage_config=stage("torch.nn.Identity"), concat_mode=True),
            SpatialConditioning(in_channels=3),
            3,
            id="map as it is",
        ),
        pytest.param(
            project(PLAIN, {"in_channels": 7}, cond_stage_config="__is_first_stage__"), Unconditional(), 4, id="encoded"
        ),
        pytest.param(
            project(
                PLAIN,
                {"in_channels": 6},
                cond_stage_config=stage("SpatialRescaler", n_stages=1, in_channels=9, out_channels=3),
            ),
            SpatialConditioning(in_channels=9, num_stages=1, out_channels=3),
            3,
            id="map",
        ),
        pytest.param(
            project(CLASSES, cond_stage_config=stage("torch.nn.Identity"), conditioning_key="crossattn"),
            EmbeddingConditioning(context_dim=24),
            0,
            id="embeddings",
        ),
        pytest.param(
            project(PLAIN, {"num_classes": 4}, cond_stage_config=stage("torch.nn.Identity"), conditioning_key="adm"),
            ClassConditioning(num_classes=4, null_class=False, context_dim=1),
            0,
            id="labels",
        ),
        pytest.param(
            project(CLASSES, {"in_channels": 5}, cond_stage_config="__is_unconditional__"),
            EmbeddingConditioning(context_dim=24),
            2,
            id="given from outside",
        ),
        pytest.param(
            project(PLAIN, {"num_classes": "sequential", "adm_in_channels": 9}), Unconditional(), 0, id="vectors"
        ),
        pytest.param(
            text("BERTEmbedder", 512, n_embed=512, n_layer=16, vocab_size=8192, max_seq_len=92, use_tokenizer=False),
            load_experiment("zoo/layout2img").conditioning,
            0,
            id="boxes",
        ),
        pytest.param(text("FrozenCLIPEmbedder", 768), ClipTextConditioning(), 0, id="CLIP"),
        pytest.param(
            text(
                "FrozenOpenCLIPEmbedder",
                1024,
                {"in_channels": 8},
                variant("LatentInpaintDiffusion"),
                freeze=True,
                layer="penultimate",
            ),
            SD2,
            5,
            id="OpenCLIP",
        ),
    ],
)
def test_conditioning_stages(found: OriginalProject, conditioning: Any, concat_channels: int) -> None:
    assert found.conditioning == conditioning
    assert found.unet.config.concat_channels == concat_channels
    assert parse_project(yaml.safe_load(project_yaml(found)), "back") == found


def test_stable_diffusion_xl() -> None:
    found = engine()
    assert isinstance(found.conditioning, SdxlConditioning)
    default = SdxlConditioning(size_dim=8)
    assert found.conditioning.first == default.first
    assert dataclasses.replace(found.conditioning.second, pooled_at="end") == default.second
    assert found.unet.config.vector_dim == 1328 and found.unet.config.transformer_depth == (1, 2)
    assert (found.image_size, found.scale_factor, found.use_ema, found.library) == (1024, 0.13025, False, "sgm")
    assert found.experiment().conditioning == found.conditioning
    assert parse_project(yaml.safe_load(project_yaml(found)), "back") == found


def test_a_model_of_the_later_code_without_conditions_or_with_one() -> None:
    network = copy.deepcopy(ENGINE["network_config"])
    network["params"] |= {"context_dim": None, "num_classes": None}
    none = stage("sgm.modules.GeneralConditioner", emb_models=[])
    plain = engine(network_config=network, conditioner_config=none)
    assert plain.conditioning == Unconditional() and plain.image_size == 256
    network["params"]["context_dim"] = 1024
    one = {"input_key": "txt", **stage("sgm.modules.encoders.modules.FrozenOpenCLIPEmbedder", layer="penultimate")}
    found = engine(network_config=network, conditioner_config=stage("sgm.modules.GeneralConditioner", emb_models=[one]))
    assert found.conditioning == SD2
    assert parse_project(yaml.safe_load(project_yaml(found)), "back") == found


@pytest.mark.parametrize(
    ("name", "kind"),
    [("linear", "scaled_linear"), ("sqrt_linear", "linear"), ("cosine", "cosine"), ("sqrt", "sqrt")],
)
def test_schedules_have_other_names(name: str, kind: str) -> None:
    found = project(PLAIN, beta_schedule=name, timesteps=200, linear_start=0.001, linear_end=0.01)
    assert found.diffusion.schedule == ScheduleConfig(
        kind=kind, num_train_timesteps=200, beta_start=0.001, beta_end=0.01
    )
    assert parse_project(yaml.safe_load(project_yaml(found)), "back") == found


@pytest.mark.parametrize(("name", "kind"), [("eps", "epsilon"), ("x0", "x0"), ("v", "v")])
def test_predictions_have_other_names(name: str, kind: str) -> None:
    found = project(PLAIN, parameterization=name, loss_type="l1")
    assert (found.diffusion.prediction_type, found.diffusion.loss) == (kind, "l1")


def test_a_first_stage_alone() -> None:
    params = PLAIN["model"]["params"]["first_stage_config"]["params"]
    values = {"model": {"base_learning_rate": 4.5e-6, **stage("ldm.models.autoencoder.VQModel", **params)}, "data": 1}
    found = parse_project(values, "f")
    assert isinstance(found, OriginalAutoencoder) and found == project(PLAIN).autoencoder


def test_variants_leave_the_makers_of_conditions_out() -> None:
    found = text(
        "FrozenOpenCLIPEmbedder", 1024, {"in_channels": 6, "num_classes": 9}, variant("LatentUpscaleDiffusion")
    )
    assert found.other_stages == ("low_scale_model",) and found.experiment().denoiser.num_classes == 9


def test_the_size_of_pictures_can_be_told() -> None:
    found = parse_project(PLAIN, "f", Unsaid(image_size=64))
    assert isinstance(found, OriginalProject) and found.image_size == 64


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([1], "project.yaml is [1]; expected a table of options"),
        ({"data": {}}, "project.yaml: model is missing"),
        (
            changed(PLAIN, target=variant("DDPM")),
            "target=ldm.models.diffusion.ddpm.DDPM is not supported; known: Laten",
        ),
        (changed(PLAIN, channels=4), "channels=4 is not supported; the first stage has embed_dim=3"),
        (changed(PLAIN, {"in_channels": 2}), "in_channels=2 is not supported; the latent has 3 channels"),
        (changed(PLAIN, parameterization="mu"), "parameterization='mu' is not supported; use 'eps' or 'x0' or 'v'"),
        (
            changed(PLAIN, beta_schedule="warm"),
            "beta_schedule='warm' is not supported; use 'linear' or 'sqrt_linear'",
        ),
        (changed(PLAIN, loss_type="huber"), "loss_type='huber' is not supported; use 'l1' or 'l2'"),
        (changed(PLAIN, cosine_s=0.1), "cosine_s=0.1 is not supported; the cosine schedule has its published offset"),
        (changed(PLAIN, given_betas=[0.1]), "given_betas=[0.1] is not supported; the schedule follows from beta_sched"),
        (changed(PLAIN, original_elbo_weight=1.0), "original_elbo_weight=1.0 is not supported; the loss is the simple"),
        (changed(PLAIN, l_simple_weight=0.5), "l_simple_weight=0.5 is not supported; the loss is the simple one"),
        (changed(PLAIN, v_posterior=1.0), "v_posterior=1.0 is not supported; the posterior's variance is the lower"),
        (changed(PLAIN, learn_logvar=True), "learn_logvar=True is not supported; the loss has no learned weights"),
        (changed(PLAIN, num_timesteps_cond=2), "num_timesteps_cond=2 is not supported; conditions have no noise"),
        (changed(PLAIN, cond_stage_forward="f"), "cond_stage_forward='f' is not supported; conditioners are called"),
        (changed(PLAIN, force_null_conditioning=True), "force_null_conditioning=True is not supported; a model with"),
        (changed(PLAIN, magic=1), "project.yaml.model.params: magic=1 is not supported; no such option"),
        (changed(PLAIN, conditioning_key="crossattn"), None),
        (changed(PLAIN, unet_config=stage("ldm.X")), "target=ldm.X is not supported; known: ldm.modules.diffusionmod"),
        (
            changed(PLAIN, unet_config={"sequential_crossattn": True, **PLAIN["model"]["params"]["unet_config"]}),
            "sequential_crossattn=True is not supported; all transformer blocks see one context",
        ),
        (
            changed(CLASSES, conditioning_key="concat"),
            "conditioning_key='concat' is not supported; the U-Net is made for crossattn: context_dim=24",
        ),
        (changed(CLASSES, concat_mode=True), "conditioning_key='concat' is not supported; the U-Net is made for cross"),
        (changed(CLASSES, conditioning_key="magic"), "conditioning_key='magic' is not supported; known: concat, cross"),
        (
            changed(PLAIN, {"in_channels": 6, "num_classes": 3}, cond_stage_config=stage("torch.nn.Identity")),
            "conditioning_key=None is not supported; the U-Net is made for another: context_dim=None, num_classes=3",
        ),
        (
            changed(CLASSES, cond_stage_config="__is_first_stage__"),
            "cond_stage_config='__is_first_stage__' is not supported; known: __is_unconditional__",
        ),
        (
            changed(CLASSES, cond_stage_config=stage("FrozenT5Embedder")),
            "target=ldm.modules.encoders.modules.FrozenT5Embedder is not supported; known: ClassEmbedder",
        ),
        (
            changed(CLASSES, cond_stage_config=stage("ClassEmbedder", embed_dim=25)),
            "ldm.modules.encoders.modules.ClassEmbedder has context_dim=25, the U-Net 24",
        ),
        (
            changed(CLASSES, cond_stage_config=stage("SpatialRescaler", in_channels=3)),
            "conditioning_key='crossattn' is not supported; ldm.modules.encoders.modules.SpatialRescaler needs concat",
        ),
        (
            changed(PLAIN, {"in_channels": 6}, cond_stage_config=stage("ClassEmbedder", embed_dim=24)),
            "conditioning_key='concat' is not supported; ldm.modules.encoders.modules.ClassEmbedder needs crossattn",
        ),
        (
            changed(PLAIN, {"in_channels": 6}, cond_stage_config=stage("SpatialRescaler", method="nearest")),
            "method='nearest' is not supported; use 'bilinear' or 'area'",
        ),
        (
            changed(PLAIN, {"in_channels": 6}, cond_stage_config=stage("SpatialRescaler", multiplier=0.25)),
            "multiplier=0.25 is not supported; each stage halves the map",
        ),
        (
            changed(PLAIN, {"in_channels": 6}, cond_stage_config=stage("SpatialRescaler", bias=True)),
            "bias=True is not supported; the channel mapper has no bias",
        ),
    ],
)
def test_refusals(values: Any, message: str | None) -> None:
    if message is None:  # a model without conditions has no conditioning_key, whatever is written
        assert isinstance(parse_project(values, "project.yaml"), OriginalProject)
        return
    with pytest.raises(UserError) as error:
        parse_project(values, "project.yaml")
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"network_wrapper": "w"}, "network_wrapper='w' is not supported; the U-Net is called as it is"),
        ({"network_config": stage("a.B")}, "network_config: target=a.B is not supported; known: sgm.modules.diff"),
        ({"conditioner_config": stage("a.B")}, "conditioner_config: target=a.B is not supported; known: sgm.modules.G"),
        ({"magic": 1}, "magic=1 is not supported; no such option"),
        (
            {"conditioner_config": stage("sgm.modules.GeneralConditioner", emb_models=[])},
            "conditioner_config: context_dim is None, but the U-Net takes 2048",
        ),
        (
            {
                "conditioner_config": stage(
                    "sgm.modules.GeneralConditioner",
                    emb_models=ENGINE["conditioner_config"]["params"]["emb_models"][1:],
                )
            },
            "emb_models with input_key=['txt', 'original_size_as_tuple', 'crop_coords_top_left', 'target_size_as_",
        ),
    ],
)
def test_refusals_of_the_later_code(params: dict, message: str) -> None:
    with pytest.raises(UserError) as error:
        engine(**params)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scaling_config": {"target": "a.EDMScaling"}}, "scaling_config=a.EDMScaling is not supported; known: sgm"),
        ({"quantize_c_noise": False}, "quantize_c_noise=False is not supported; times are the schedule's own"),
        ({"num_idx": 500}, None),
        (
            {"discretization_config": stage("sgm.modules.diffusionmodules.discretizer.EDMDiscretization")},
            "target=sgm.modules.diffusionmodules.discretizer.EDMDiscretization is not supported; known: sgm",
        ),
        (
            {
                "discretization_config": stage(
                    "sgm.modules.diffusionmodules.discretizer.LegacyDDPMDiscretization", num_timesteps=10
                )
            },
            "num_timesteps=10 is not supported; the denoiser has num_idx, which must be the same",
        ),
    ],
)
def test_denoisers_of_the_later_code(changes: dict, message: str | None) -> None:
    denoiser = copy.deepcopy(ENGINE["denoiser_config"])
    denoiser["params"] |= changes
    if message is None:
        assert engine(denoiser_config=denoiser).diffusion.schedule.num_train_timesteps == 500
        return
    with pytest.raises(UserError) as error:
        engine(denoiser_config=denoiser)
    assert message in str(error.value)


def test_a_file_that_is_none(tmp_path: Path) -> None:
    path = tmp_path / "project.yaml"
    with pytest.raises(UserError, match=r"project.yaml does not exist; give the project file of the checkpoint"):
        read_project(path)
    path.write_text("a: [1")
    with pytest.raises(UserError, match=r"project.yaml is not valid YAML"):
        read_project(path)
    with pytest.raises(UserError, match=r"cannot be read .*; give the project file of the checkpoint"):
        read_project(tmp_path)


def test_numbers_are_those_of_the_original_s_reader() -> None:
    text = "a: 1e-4\nb: 1.5e3\nc: .5e1\nd: -2E-1\ne: 12\nf: 1e\ng: 0x1e5\nh: '1e-4'"
    expected = {"a": 1e-4, "b": 1500.0, "c": 5.0, "d": -0.2, "e": 12, "f": "1e", "g": 0x1E5, "h": "1e-4"}
    assert parse_yaml(text, "f") == expected


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"loss": "huber"}, "the original code (ldm) cannot express DiffusionConfig.loss='huber'"),
        ({"weighting": "min_snr"}, "the original code (ldm) cannot express DiffusionConfig.weighting='min_snr'"),
        (
            {"prediction_type": "v", "schedule": ScheduleConfig(zero_terminal_snr=True)},
            "the original code (ldm) cannot express DiffusionConfig.schedule.zero_terminal_snr=True",
        ),
    ],
)
def test_what_the_original_cannot_express_is_named(changes: dict, message: str) -> None:
    found = project(PLAIN)
    found = dataclasses.replace(found, diffusion=dataclasses.replace(found.diffusion, **changes))
    with pytest.raises(UserError) as error:
        project_yaml(found)
    assert str(error.value) == message


def test_the_later_code_predicts_no_clean_latent_and_has_one_schedule() -> None:
    found = engine()
    diffusion = dataclasses.replace(found.diffusion, prediction_type="x0", schedule=ScheduleConfig(kind="cosine"))
    with pytest.raises(UserError, match=r"\(sgm\) cannot express .*prediction_type='x0', schedule.kind='cosine'"):
        project_yaml(dataclasses.replace(found, diffusion=diffusion))


def test_a_conditioner_that_the_original_has_not_is_named() -> None:
    with pytest.raises(UserError, match=r"^the original code has no conditioner for EmbeddingConditioning\("):
        options_of_conditioning(EmbeddingConditioning())


@pytest.mark.parametrize("factor", [0.18215, 0.13025, 0.22765929, 1.0, 1 / 3])
def test_scale_factors_come_back_with_the_digits_that_they_had(factor: float) -> None:
    latent = latent_params((0.0,), (1 / factor,), 4)
    again = scale_factor_of(latent)
    assert latent_params((0.0,), (1 / again,), 4)["std"][0] == latent["std"][0]
    if len(str(factor)) < 9:
        assert again == factor


def test_latents_scaled_by_channel_cannot_be_written() -> None:
    with pytest.raises(UserError, match=r"latent.std=\[1.0, 2.0\]: train with latent_scale=global"):
        scale_factor_of({"mean": [0.0, 0.0], "std": [1.0, 2.0]})
