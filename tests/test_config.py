"""Configurations: what is refused and with which words, and that they survive being saved."""

import dataclasses
import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tyro
from hypothesis import given
from hypothesis import strategies as st

from ldm_jax import config as c
from ldm_jax.errors import UserError

RESIZES: dict[str, c.Resize] = {"384": 384, "256 512": (256, 512), "keep": "keep", "None": None}


@pytest.mark.parametrize("said", RESIZES)
def test_how_pictures_are_resized_is_said_in_one_flag(said: str):
    flags = ["--image-size", "256", "--crop", "random", "--resize", *said.split()]
    config = tyro.cli(tyro.conf.AvoidSubcommands[c.DataConfig], args=flags)
    assert (config.resize, config.crop) == (RESIZES[said], "random")
    assert c.from_dict(json.loads(json.dumps(c.to_dict(config)))) == config


REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "positive": (
        lambda: c.DataConfig(image_size=0),
        "DataConfig.image_size=0 must be greater than 0",
    ),
    "a square that is larger than its picture": (
        lambda: c.DataConfig(image_size=256, resize=200),
        "DataConfig.resize=200 is smaller than image_size=256, the square that is cut out; use 256 at least",
    ),
    "sizes that fall": (
        lambda: c.DataConfig(image_size=256, resize=(512, 256), crop="random"),
        "DataConfig.resize=(512, 256) must rise; use 256 512",
    ),
    "sizes drawn for squares that are not": (
        lambda: c.DataConfig(image_size=256, resize=(256, 512)),
        "DataConfig.resize=(256, 512) is drawn for each sample, and crop=center draws nothing; use crop=random, or one "
        "number such as 256",
    ),
    "random squares of what latents are given": (
        lambda: dataclasses.replace(c.load_experiment("superres"), data=c.DataConfig(image_size=64, crop="random")),
        "data.crop=random cuts what is given anew in each step, and latents that are encoded once are of one square: "
        "use --data.no-cache-latents without --data.latents, or data.crop=center",
    ),
    "fraction": (
        lambda: c.ImageFolder(test_fraction=1.5),
        "ImageFolder.test_fraction=1.5 must lie between 0 and 1",
    ),
    "groups do not divide channels": (
        lambda: c.AutoencoderKLConfig(base_channels=48, num_groups=32),
        "AutoencoderKLConfig.num_groups=32 does not divide 48 channels (base_channels=48 times 1); "
        "nearest that does: 24",
    ),
    "no level": (
        lambda: c.AutoencoderVQConfig(channel_mult=()),
        "AutoencoderVQConfig.channel_mult=() is empty; give at least one level, such as 1 2 4",
    ),
    "level of zero width": (
        lambda: c.UNetConfig(channel_mult=(1, 0, 2)),
        "UNetConfig.channel_mult entry=0 must be greater than 0",
    ),
    "attention at a level that is not there": (
        lambda: c.UNetConfig(channel_mult=(1, 2), attention_levels=(2,)),
        "UNetConfig.attention_levels=(2,) names level 2, but channel_mult=(1, 2) has levels 0 to 1",
    ),
    "heads given twice": (
        lambda: c.UNetConfig(num_heads=4, num_head_channels=32),
        "UNetConfig.num_heads=4 and UNetConfig.num_head_channels=32: give exactly one of them and set the other to "
        "None",
    ),
    "heads of the way up beside the width of heads": (
        lambda: c.UNetConfig(num_heads_up=2),
        "UNetConfig.num_heads_up=2 needs num_heads; with num_head_channels=32 set it to None",
    ),
    "heads of the way up that do not divide": (
        lambda: c.UNetConfig(num_heads=4, num_heads_up=3, num_head_channels=None),
        "UNetConfig.num_heads_up=3 does not divide the 256 channels of level 1; nearest that does: 2",
    ),
    "heads not given": (
        lambda: c.UNetConfig(num_heads=None, num_head_channels=None),
        "UNetConfig.num_heads=None and UNetConfig.num_head_channels=None: give exactly one of them",
    ),
    "head channels do not divide": (
        lambda: c.UNetConfig(base_channels=64, channel_mult=(1, 2), attention_levels=(0,), num_head_channels=48),
        "UNetConfig.num_head_channels=48 does not divide the 64 channels of level 0; nearest that does: 32",
    ),
    "heads do not divide": (
        lambda: c.UNetConfig(
            base_channels=64, channel_mult=(1, 2), attention_levels=(1,), num_heads=5, num_head_channels=None
        ),
        "UNetConfig.num_heads=5 does not divide the 128 channels of level 1; nearest that does: 4",
    ),
    "heads for another number of levels": (
        lambda: c.UNetConfig(channel_mult=(1, 2, 4), num_heads=(4, 8), num_head_channels=None),
        "UNetConfig.num_heads=(4, 8) has 2 entries for 3 levels; give one number, or one for each entry of "
        "channel_mult",
    ),
    "a choice too few of how the resolution changes": (
        lambda: c.UNetConfig(resample_with_res_blocks=(True, False, True)),
        "UNetConfig.resample_with_res_blocks=(True, False, True) is not one choice for each of the 4 changes of "
        "resolution; give one for each, or one for all",
    ),
    "attention on the way up at a level that is not there": (
        lambda: c.UNetConfig(channel_mult=(1, 2), attention_levels=(), up_attention_levels=(2,)),
        "UNetConfig.up_attention_levels=(2,) names level 2, but channel_mult=(1, 2) has levels 0 to 1",
    ),
    "attention in a middle without room for it": (
        lambda: c.UNetConfig(mid_res_blocks=1),
        "UNetConfig.mid_res_blocks=1 leaves no place for mid_attention=True; use 2, or mid_attention=False",
    ),
    "groups of the middle": (
        lambda: c.UNetConfig(attention="self", mid_attention_groups=5),
        "UNetConfig.mid_attention_groups=5 does not divide the 512 channels of the middle; nearest that does: 4",
    ),
    "groups of the middle with transformers": (
        lambda: c.UNetConfig(mid_attention_groups=4),
        "UNetConfig.mid_attention_groups=4 needs attention=self: a spatial transformer has num_groups",
    ),
    "channels that a missing convolution cannot change": (
        lambda: c.AutoencoderKLConfig(z_channels=8, post_quant_conv=False),
        "AutoencoderKLConfig.z_channels=8 differs from latent_channels=4, which needs both convolutions around "
        "the latent: quant_conv=True, post_quant_conv=None",
    ),
    "a perceptual distance that sees nothing": (
        lambda: c.Experiment(
            data=c.DataConfig(image_size=16),
            first_stage=c.FirstStageConfig(perceptual=c.PerceptualConfig(weight=1.0, net="alexnet")),
        ),
        "first_stage.perceptual.net=alexnet sees nothing in pictures of data.image_size=16; they need 31 at least, or "
        "use vgg16",
    ),
    "a negative perceptual distance": (
        lambda: c.PerceptualConfig(weight=-1.0),
        "PerceptualConfig.weight=-1.0 must not be negative",
    ),
    "short context": (
        lambda: c.TextConditioning(context_length=2),
        "TextConditioning.context_length=2 must be at least 3: begin, one token, end",
    ),
    "text heads": (
        lambda: c.TextConditioning(context_dim=128, num_heads=3),
        "TextConditioning.num_heads=3 does not divide context_dim=128; nearest that does: 2",
    ),
    "one timestep": (
        lambda: c.ScheduleConfig(num_train_timesteps=1),
        "ScheduleConfig.num_train_timesteps=1 must lie between 2 and 1000000",
    ),
    "betas": (
        lambda: c.ScheduleConfig(beta_start=0.02, beta_end=0.01),
        "ScheduleConfig.beta_start=0.02 and beta_end=0.01 must satisfy 0 < beta_start <= beta_end < 1",
    ),
    "epsilon at zero SNR": (
        lambda: c.DiffusionConfig(schedule=c.ScheduleConfig(zero_terminal_snr=True)),
        "DiffusionConfig.prediction_type=epsilon cannot be used with schedule.zero_terminal_snr=True: at the last "
        "timestep z_t is the noise itself; use v or x0",
    ),
    "epsilon on the straight path": (
        lambda: c.DiffusionConfig(schedule=c.ScheduleConfig(kind="flow")),
        "DiffusionConfig.prediction_type=epsilon cannot be used with schedule.kind=flow, whose last timestep is pure "
        "noise and whose alpha^2 + sigma^2 is not 1; use flow or x0",
    ),
    "shift without flow": (
        lambda: c.ScheduleConfig(kind="cosine", shift=3.0),
        "ScheduleConfig.shift=3.0 is for kind=flow, not for kind=cosine; use 1",
    ),
    "zero SNR of flow": (
        lambda: c.ScheduleConfig(kind="flow", zero_terminal_snr=True),
        "ScheduleConfig.zero_terminal_snr=True is not for kind=flow, whose last timestep is pure noise already; "
        "use False",
    ),
    "churn": (lambda: c.SamplingConfig(churn=-1.0), "SamplingConfig.churn=-1.0 must not be negative"),
    "percentile": (
        lambda: c.SamplingConfig(clip_percentile=1.5),
        "SamplingConfig.clip_percentile=1.5 must lie between 0 and 1",
    ),
    "negative warm-up": (
        lambda: c.OptimizerConfig(warmup_steps=-1),
        "OptimizerConfig.warmup_steps=-1 must not be negative",
    ),
    "clipping to nothing": (
        lambda: c.OptimizerConfig(max_grad_norm=0.0),
        "OptimizerConfig.max_grad_norm=0.0 must be greater than 0",
    ),
    "micro-batches": (
        lambda: c.TrainingConfig(batch_size=32, gradient_accumulation=5),
        "TrainingConfig.gradient_accumulation=5 does not divide batch_size=32; nearest that does: 4",
    ),
    "a moment that never forgets": (
        lambda: c.OptimizerConfig(beta2=1.0),
        "OptimizerConfig.beta2=1 never learns; use less, such as 0.9 or 0.999",
    ),
    "negative guidance": (
        lambda: c.SamplingConfig(guidance_scale=-1.0),
        "SamplingConfig.guidance_scale=-1.0 must not be negative",
    ),
    "mesh axis of no devices": (
        lambda: c.MeshConfig(fsdp=0),
        "MeshConfig.fsdp=0 must be positive, or -1 for the rest",
    ),
    "two rests": (
        lambda: c.MeshConfig(data=-1, tensor=-1),
        "MeshConfig has more than one -1: {'data': -1, 'fsdp': 1, 'tensor': -1}; at most one axis",
    ),
    "negative seed": (
        lambda: c.Experiment(seed=-3),
        "Experiment.seed=-3 must not be negative",
    ),
    "image size": (
        lambda: c.Experiment(data=c.DataConfig(image_size=50)),
        "data.image_size=50 is not divisible by 16 (the autoencoder's downsample_factor=4 times 2 for each further "
        "level of the denoiser); nearest usable: 48 and 64",
    ),
    "more steps than timesteps": (
        lambda: c.Experiment(sampling=c.SamplingConfig(num_sample_steps=1001)),
        "sampling.num_sample_steps=1001 is more than diffusion.schedule.num_train_timesteps=1000; use at most 1000",
    ),
    "denoiser of another dimension": (
        lambda: c.Experiment(denoiser=c.UNetConfig(spatial_dims=1)),
        "denoiser.spatial_dims=1 is not that of the autoencoder, whose latents it denoises: use 2",
    ),
    "context that nothing looks at": (
        lambda: c.Experiment(conditioning=c.ClassConditioning(), denoiser=c.UNetConfig(attention="self")),
        "denoiser.attention=self cannot see the context of conditioning=ClassConditioning; "
        "use denoiser.attention=transformer",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_does_not_fit_is_refused_with_its_value_and_what_would_fit(name: str):
    make, message = REFUSED[name]
    with pytest.raises(UserError, match=re.escape(message)):
        make()


def config_classes() -> list[type]:
    return [kind for kind in vars(c).values() if isinstance(kind, type) and dataclasses.is_dataclass(kind)]


@pytest.mark.parametrize("kind", config_classes(), ids=lambda kind: kind.__name__)
def test_every_configuration_is_frozen_and_has_defaults_that_work(kind: type):
    config = kind()
    assert kind.__doc__
    for field in dataclasses.fields(kind):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(config, field.name, None)


@pytest.mark.parametrize("kind", config_classes(), ids=lambda kind: kind.__name__)
def test_saved_and_restored_is_the_same(kind: type):
    config = kind()
    assert c.from_dict(json.loads(json.dumps(c.to_dict(config)))) == config


@given(st.integers(1, 400), st.integers(1, 400))
def test_nearest_divisor_divides_and_none_is_nearer(number: int, wanted: int):
    found = c.nearest_divisor(number, wanted)
    assert number % found == 0
    assert all(abs(d - wanted) >= abs(found - wanted) for d in range(1, number + 1) if number % d == 0)


@pytest.mark.parametrize("size", [1, 15, 17, 100])
def test_the_sizes_that_a_message_offers_work(size: int):
    with pytest.raises(UserError) as caught:
        c.Experiment(data=c.DataConfig(image_size=size))
    offered = re.search(r"nearest usable: (\d+) and (\d+)", str(caught.value))
    assert offered is not None
    for usable in map(int, offered.groups()):
        c.Experiment(data=c.DataConfig(image_size=usable))


def test_a_choice_of_class_survives_saving():
    config = c.Experiment(
        data=c.DataConfig(source=c.ImageFolder(directory="/pictures")),
        first_stage=c.FirstStageConfig(autoencoder=c.AutoencoderVQConfig(codebook_size=77)),
        conditioning=c.ClassConditioning(num_classes=3),
        denoiser=c.UNetConfig(transformer_depth=(1, 2, 3)),
    )
    assert c.from_dict(json.loads(json.dumps(c.to_dict(config)))) == config


UNUSABLE = {float: (math.nan, math.inf, -math.inf), int: (2**31, 10**400)}


def _unusable(kind: type) -> list[dict[str, Any]]:
    """Every field that may hold a number, with each number that none may hold."""
    cases = []
    for name, hint in c.field_types(kind).items():
        for number, values in UNUSABLE.items():
            if hint in (number, number | None, number | tuple[number, ...]):
                cases += [{name: value} for value in values]
            elif hint == tuple[int | float, ...]:
                cases += [{name: (1, value)} for value in values]
    return cases


@pytest.mark.parametrize("kind", [kind for kind in config_classes() if _unusable(kind)], ids=lambda kind: kind.__name__)
def test_no_number_is_infinite_or_too_large_to_count(kind: type):
    for fields in _unusable(kind):
        with pytest.raises(UserError):
            kind(**fields)


def test_what_a_number_has_to_be_is_said():
    with pytest.raises(UserError, match=r"OptimizerConfig.learning_rate=nan must be a finite number"):
        c.OptimizerConfig(learning_rate=math.nan)
    with pytest.raises(UserError, match=r"AutoencoderKLConfig.channel_mult entry=inf must be a finite number"):
        c.AutoencoderKLConfig(channel_mult=(1, math.inf))
    with pytest.raises(UserError, match=r"Experiment.seed=4294967296 must be at most 2147483647"):
        c.Experiment(seed=2**32)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": "abc"}, "the saved Experiment has seed='abc', which is not int"),
        ({"seed": True}, "the saved Experiment has seed=True, which is not int"),
        ({"seed": None}, "the saved Experiment has seed=None, which is not int"),
        ({"compute_dtype": "float8"}, "has compute_dtype='float8', which is not Literal['float32', 'bfloat16']"),
        ({"data": 3}, "the saved Experiment has data=3, which is not DataConfig"),
        ({"denoiser": {"type": "UNetConfig", "attention_levels": ["a"]}}, "has attention_levels=('a',), which is not"),
        (
            {"sampling": {"type": "SamplingConfig", "guidance_interval": [1.0]}},
            "has guidance_interval=(1.0,), which is",
        ),
        ({"sampling": {"type": "SamplingConfig", "guidance_interval": []}}, "has guidance_interval=(), which is not"),
        ({"training": {"type": "OptimizerConfig"}}, "which is not TrainingConfig"),
        ({"data": {"type": ["DataConfig"]}}, "the saved configuration holds an unknown type ['DataConfig']"),
    ],
)
def test_a_saved_field_of_another_type_is_refused_by_name(tmp_path: Path, change: dict[str, Any], message: str):
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**c.to_dict(c.Experiment()), **change}))
    with pytest.raises(UserError, match=re.escape(f"{path}: the saved ")) as error:
        c.restore_experiment(path)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"\xff\xfe{}", "is not valid JSON"), (b"[" * 100_000, "is not valid JSON"), (b"[]", "holds a tuple, not an")],
)
def test_a_saved_configuration_that_is_none(tmp_path: Path, content: bytes, message: str):
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(UserError, match=message):
        c.restore_experiment(tmp_path / "config.json")


def test_a_saved_configuration_that_cannot_be_read(tmp_path: Path):
    with pytest.raises(UserError, match=r"cannot be read \(Is a directory\)"):
        c.restore_experiment(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("def get_config(:", "mine.py line 1: SyntaxError: invalid syntax"),
        ("import nothing_like_this", "mine.py line 1: ModuleNotFoundError: No module named 'nothing_like_this'"),
        ("def get_config():\n    return 1 / 0", "mine.py line 2: ZeroDivisionError: division by zero"),
        ("def get_config():\n    return 3", "mine.py returns 3, not an Experiment"),
        ("import sys\nsys.exit(7)", "mine.py line 2: SystemExit: 7"),
        ("\0", "mine.py: SyntaxError: source code string cannot contain null bytes"),
        ("def get_config(x):\n    return x", "mine.py: TypeError: get_config() missing 1 required positional argument"),
        (
            "VARIANTS = None\ndef get_config(x):\n    return x",
            "mine.py has VARIANTS=None; give a dict of each variant's",
        ),
    ],
)
def test_an_experiment_file_with_a_mistake_is_told_where(tmp_path: Path, content: str, message: str):
    (tmp_path / "mine.py").write_text(content)
    with pytest.raises(UserError, match=re.escape(message)):
        c.load_experiment(str(tmp_path / "mine.py"))


@pytest.mark.parametrize(
    ("part", "name", "value", "message"),
    [
        ("e", "seed", 1.5, "Experiment.seed=1.5 must be int"),
        ("e.sampling", "prompts", "a cat", "SamplingConfig.prompts='a cat' must be tuple[str, ...]"),
        ("e.denoiser", "attention_levels", [0], "UNetConfig.attention_levels=[0] must be tuple[int, ...]"),
        ("e.training", "num_steps", 4.0, "TrainingConfig.num_steps=4.0 must be int"),
        ("e.diffusion", "loss", "l3", "DiffusionConfig.loss='l3' must be Literal['l2', 'l1', 'huber']"),
        ("e", "conditioning", None, "Experiment.conditioning=None must be Unconditional | ClassConditioning |"),
    ],
)
def test_a_value_of_another_type_in_an_experiment_file_is_named(
    tmp_path: Path, part: str, name: str, value: Any, message: str
):
    path = tmp_path / "mine.py"  # sets it behind the type checker, which is on in tests alone
    path.write_text(
        "from ldm_jax.config import Experiment\ndef get_config():\n    e = Experiment()\n"
        f"    object.__setattr__({part}, {name!r}, {value!r})\n    return e\n"
    )
    with pytest.raises(UserError, match=re.escape(f"get_config() of {path}: {message}")):
        c.load_experiment(str(path))


def test_an_experiment_file_that_is_not_there(tmp_path: Path):
    for name in (f"{tmp_path}/none.py", f"{tmp_path}/none.py:small"):
        with pytest.raises(
            UserError, match=rf"{tmp_path}/none\.py is no file; name one with a get_config\(\), or an exp"
        ):
            c.load_experiment(name)


@pytest.mark.parametrize("kind", [c.AutoencoderKLConfig, c.UNetConfig])
def test_residual_blocks_are_not_built_for_a_lifetime(kind: type):
    with pytest.raises(UserError, match=rf"{kind.__name__}.num_res_blocks\D*\d?=1001 must be at most 1000"):
        kind(num_res_blocks=1001)


@pytest.mark.parametrize("kind", [c.TextConditioning, c.ClipTextConditioning, c.DiscriminatorConfig])
def test_layers_are_not_built_for_a_lifetime(kind: type):
    with pytest.raises(UserError, match=f"{kind.__name__}.num_layers=2147483647 must be at most 1000"):
        kind(num_layers=2**31 - 1)


def test_a_map_is_not_halved_for_a_lifetime():
    with pytest.raises(UserError, match=r"SpatialConditioning\.num_stages=31 must be at most 30"):
        c.SpatialConditioning(num_stages=31)


def test_unknown_type_and_field_are_named():
    with pytest.raises(UserError, match="the saved configuration holds an unknown type 'Diffuser'"):
        c.from_dict({"type": "Diffuser"})
    with pytest.raises(UserError, match="unknown type None"):
        c.from_dict({"seed": 1})
    with pytest.raises(UserError, match=r"the saved Shapes has unknown fields \['colour'\]; known: \['num_examples'\]"):
        c.from_dict({"type": "Shapes", "colour": "red"})


def test_nothing_but_a_configuration_is_made_from_a_file():
    for name in ("UserError", "Path", "__builtins__", "load_experiment"):
        with pytest.raises(UserError, match="unknown type"):
            c.from_dict({"type": name})


def test_experiment_files(tmp_path: Path):
    path = tmp_path / "config.json"
    experiment = c.load_experiment("smoke")
    c.save_experiment(experiment, path)
    assert c.restore_experiment(path) == experiment
    with pytest.raises(
        UserError, match=re.escape(f"{tmp_path / 'no/config.json'} does not exist: {tmp_path / 'no'} is no")
    ):
        c.restore_experiment(tmp_path / "no" / "config.json")
    path.write_text(path.read_text()[:100])
    with pytest.raises(
        UserError, match=r"config.json is not valid JSON \(.*\); restore it or train into another folder"
    ):
        c.restore_experiment(path)
    path.write_text(json.dumps(c.to_dict(c.Shapes())))
    with pytest.raises(UserError, match="holds a Shapes, not an Experiment"):
        c.restore_experiment(path)


def test_an_unknown_experiment_is_answered_with_the_nearest_names():
    known = ", ".join(c.experiment_names())
    with pytest.raises(UserError, match=f"unknown experiment 'smoek': did you mean smoke.*known experiments: {known}"):
        c.load_experiment("smoek")
    with pytest.raises(UserError, match=f"unknown experiment 'zzzzzz': known experiments: {known}"):
        c.load_experiment("zzzzzz")


def test_an_experiment_can_be_any_file_with_get_config(tmp_path: Path):
    path = tmp_path / "mine.py"
    path.write_text("from ldm_jax.config import Experiment\n\ndef get_config():\n    return Experiment(name='mine')\n")
    assert c.load_experiment(str(path)).name == "mine"
    path.write_text("x = 1\n")
    with pytest.raises(UserError, match=r"mine.py defines no get_config\(\); an experiment file returns an Experiment"):
        c.load_experiment(str(path))


FAMILY = """from ldm_jax.config import Experiment

VARIANTS = {"small": "The small one.", "large": "The large one."}


def get_config(variant):
    return Experiment(name=variant, seed=len(variant))
"""


def test_a_file_can_hold_a_family(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "mine.py").write_text(FAMILY)
    monkeypatch.chdir(tmp_path)
    for path in (str(tmp_path / "mine.py"), "./mine.py", "mine.py"):
        assert c.load_experiment(f"{path}:large") == c.Experiment(name="large", seed=5)
        assert c.describe_experiment(f"{path}:small") == "The small one."
    known = "known experiments: mine.py:large, mine.py:small"
    with pytest.raises(UserError, match=f"unknown experiment 'mine.py:lage': did you mean mine.py:large or .*{known}"):
        c.load_experiment("mine.py:lage")
    with pytest.raises(UserError, match=f"unknown experiment 'mine.py': .*{known}"):
        c.load_experiment("mine.py")


def test_a_single_experiment_has_no_variants(tmp_path: Path):
    for name in ("smoke/large", "smoke/", "/smoke", "../configs/smoke"):
        with pytest.raises(UserError, match=f"unknown experiment '{name}'"):
            c.load_experiment(name)
    (tmp_path / "mine.py").write_text("def get_config():\n    return None\n")
    with pytest.raises(UserError, match=r"unknown experiment '\S*mine.py:a': did you mean \S*mine.py\?"):
        c.load_experiment(f"{tmp_path}/mine.py:a")


def test_an_experiment_describes_itself_by_its_docstring():
    assert c.describe_experiment("smoke").startswith("Both stages on generated coloured shapes")


def test_differences_name_the_fields_with_both_values():
    old = c.Experiment()
    assert list(c.differences(old, old)) == []
    new = dataclasses.replace(old, seed=1, data=c.DataConfig(horizontal_flip=True))
    assert list(c.differences(old, new)) == ["seed: 0 -> 1", "data.horizontal_flip: False -> True"]
    other = dataclasses.replace(old, conditioning=c.ClassConditioning())
    (line,) = c.differences(old, other)
    assert line.startswith("conditioning: Unconditional() -> ClassConditioning(")


def test_how_a_run_is_executed_is_no_difference():
    old = c.Experiment()
    training = dataclasses.replace(old.training, log_every=1, eval_every=1, sample_every=1, checkpoint_every=1)
    new = dataclasses.replace(
        old,
        mesh=c.MeshConfig(fsdp=2),
        training=dataclasses.replace(training, keep_checkpoints=9),
        data=dataclasses.replace(old.data, cache_dir="/elsewhere", num_threads=0),
    )
    assert new != old
    assert list(c.differences(old, new)) == []
    assert list(c.differences(old, dataclasses.replace(new, training=c.TrainingConfig(num_steps=2)))) != []


def test_the_help_texts_are_complete():
    """tyro shows a field's docstring; a field without one would have an empty help text."""
    source = "\n".join(path.read_text() for path in Path(c.__file__).parent.glob("*.py"))
    for kind in config_classes():
        for field in dataclasses.fields(kind):
            described = re.search(rf'^    {field.name}: .*(?:\n        .*)*\n    """', source, re.MULTILINE)
            nested = field.default is dataclasses.MISSING  # then the class of the field describes it
            assert described or nested, f"{kind.__name__}.{field.name} has no docstring"


def test_types_resolve():
    for kind in config_classes():
        assert set(c.field_types(kind)) == {field.name for field in dataclasses.fields(kind)}


@pytest.mark.parametrize("steps", [(0, 3), (5, 4)])
def test_steps_of_a_trace_are_a_first_and_a_last(steps: tuple[int, int]):
    message = rf"TrainingConfig\.profile_steps=\({steps[0]}, {steps[1]}\) must be the first and the last of some steps"
    with pytest.raises(UserError, match=message):
        c.TrainingConfig(profile_steps=steps)


def test_a_run_needs_a_name_for_its_folder():
    with pytest.raises(UserError, match=r"Experiment\.name is empty; its run folder is called after it"):
        c.Experiment(name="  ")


def test_threads_are_not_without_end():
    with pytest.raises(UserError, match=r"DataConfig\.num_threads=257 must be at most 256"):
        c.DataConfig(num_threads=257)
