"""Scheduler configurations of diffusers: strict reading, the way back, and parity cases."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ldm_jax.config import DiffusionConfig, SamplingConfig, ScheduleConfig
from ldm_jax.diffusion.samplers import make_sampler
from ldm_jax.diffusion.schedule import make_schedule
from ldm_jax.errors import UserError
from ldm_jax.interop.cases.samplers import is_sampler_case, run_sampler_case
from ldm_jax.interop.diffusers.scheduler_export import CLASSES, write_scheduler
from ldm_jax.interop.diffusers.scheduler_options import DEFAULTS
from ldm_jax.interop.diffusers.schedulers import SCHEDULERS, read_scheduler

GOLDEN = Path(__file__).parent / "golden" / "samplers"
STABLE_DIFFUSION = {
    "_class_name": "PNDMScheduler",
    "_diffusers_version": "0.6.0",
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "clip_sample": False,  # DDIM's: configurations are handed from one scheduler to the next
    "num_train_timesteps": 1000,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
    "trained_betas": None,
}

# --- reading ---------------------------------------------------------------------------------------------------------


def test_stable_diffusions_scheduler_is_read() -> None:
    scheduler = read_scheduler(STABLE_DIFFUSION)
    assert scheduler.name == "PNDMScheduler"
    assert scheduler.schedule == ScheduleConfig(kind="scaled_linear", beta_start=0.00085, beta_end=0.012)
    assert scheduler.prediction_type == "epsilon"
    np.testing.assert_array_equal(scheduler.make_sampler(4).timesteps, [751, 501, 501, 251, 1])


@pytest.mark.parametrize("name", DEFAULTS)
def test_every_scheduler_makes_a_sampler_of_its_defaults(name: str) -> None:
    assert set(SCHEDULERS) == set(DEFAULTS)
    sampler = read_scheduler({"_class_name": name}).make_sampler(6)
    assert all(np.all(np.isfinite(np.asarray(column))) for column in sampler.rows)
    assert sampler.num_steps >= 6


def refused_config(name: str, **options: Any) -> dict[str, Any]:
    return {"_class_name": name, **options}


REFUSED = {
    "class": (refused_config("LCMScheduler"), {}, "unknown scheduler 'LCMScheduler'; known: DDIMInverseScheduler, "),
    "no class": ({}, {}, "unknown scheduler None"),
    "option": (
        refused_config("DDIMScheduler", colour="red"),
        {},
        "DDIMScheduler has no option 'colour'; its options: beta_end, ",
    ),
    "betas": (
        refused_config("DDIMScheduler", trained_betas=[0.1]),
        {},
        r"DDIMScheduler: trained_betas=\[0.1\] is not supported; use None",
    ),
    "beta schedule": (
        refused_config("DDPMScheduler", beta_schedule="laplace"),
        {},
        "DDPMScheduler: beta_schedule='laplace' is not supported; use 'linear' or ",
    ),
    "variance": (
        refused_config("DDPMScheduler", variance_type="learned_range"),
        {},
        "DDPMScheduler: variance_type='learned_range' is not supported; use 'fixed_small' or ",
    ),
    "spacing": (
        refused_config("EulerDiscreteScheduler", timestep_spacing="random"),
        {},
        "EulerDiscreteScheduler: timestep_spacing='random' is not supported; use 'linspace' or 'leading' or 'trailing'",
    ),
    "two spacings": (
        refused_config("EulerDiscreteScheduler", use_karras_sigmas=True, use_beta_sigmas=True),
        {},
        "EulerDiscreteScheduler: only one of use_karras_sigmas, use_beta_sigmas can be True",
    ),
    "prediction type": (
        refused_config("PNDMScheduler", prediction_type="sample"),
        {},
        "PNDMScheduler: prediction_type='sample' is not supported; use 'epsilon' or 'v_prediction'",
    ),
    "flow without flow": (
        refused_config("UniPCMultistepScheduler", prediction_type="flow_prediction"),
        {},
        "UniPCMultistepScheduler: prediction_type='flow_prediction' is not supported",
    ),
    "solver": (
        refused_config("UniPCMultistepScheduler", solver_p={"a": 1}),
        {},
        r"UniPCMultistepScheduler: solver_p=\{'a': 1\} is not supported",
    ),
    "final sigma": (
        refused_config("DPMSolverMultistepScheduler", algorithm_type="dpmsolver"),
        {},
        "DPMSolverMultistepScheduler: final_sigmas_type='zero' is not supported; use 'sigma_min'",
    ),
    "mu": (
        refused_config("FlowMatchEulerDiscreteScheduler", use_dynamic_shifting=True),
        {},
        "FlowMatchEulerDiscreteScheduler: use_dynamic_shifting=True and mu go together; mu=None",
    ),
    "offset": (
        refused_config("DDIMScheduler", steps_offset=60, timestep_spacing="leading"),
        {"num_sample_steps": 20},
        r"DDIMScheduler: timesteps \[1010, .*\] do not lie in 0 to 999; check steps_offset",
    ),
    "steps": (refused_config("DDIMScheduler"), {"num_sample_steps": 0}, "num_sample_steps=0 must be at least 1"),
    "timesteps": (refused_config("DDIMScheduler"), {"timesteps": [5, 1]}, "DDIMScheduler takes no timesteps"),
    "sigmas": (refused_config("HeunDiscreteScheduler"), {"sigmas": [5.0]}, "HeunDiscreteScheduler takes no sigmas"),
    "eta": (refused_config("EulerDiscreteScheduler"), {"eta": 0.5}, "EulerDiscreteScheduler takes no eta"),
    "timesteps and karras": (
        refused_config("EulerDiscreteScheduler", use_karras_sigmas=True),
        {"timesteps": [5, 1]},
        "EulerDiscreteScheduler: timesteps cannot be given where noise levels are spaced by an option",
    ),
    "first steps": (
        refused_config("PNDMScheduler"),
        {"num_sample_steps": 3},
        "PNDMScheduler: skip_prk_steps=False needs at least 4 steps, not 3",
    ),
    "zero SNR": (
        refused_config("DDIMScheduler", rescale_betas_zero_snr=True, timestep_spacing="trailing"),
        {},
        "prediction_type=epsilon cannot be sampled from a timestep with zero SNR",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_supported_is_refused_by_name(name: str) -> None:
    config, request, message = REFUSED[name]
    with pytest.raises(UserError, match=message):
        read_scheduler(config).make_sampler(**{"num_sample_steps": 5, **request})


# --- writing ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CLASSES)
def test_what_is_written_samples_as_ours_does(name: str) -> None:
    diffusion, sampling = DiffusionConfig(prediction_type="v"), SamplingConfig(sampler=name, num_sample_steps=20)
    if name in ("euler_ancestral", "plms"):
        diffusion = DiffusionConfig()
    config = json.loads(json.dumps(write_scheduler(diffusion, sampling)))
    scheduler = read_scheduler(config)
    assert scheduler.schedule == diffusion.schedule
    assert scheduler.prediction_type == diffusion.prediction_type
    ours = make_sampler(sampling, make_schedule(diffusion.schedule), diffusion.prediction_type)
    theirs = scheduler.make_sampler(20)
    for mine, other in zip(ours.rows, theirs.rows, strict=True):
        np.testing.assert_allclose(mine, other, rtol=2e-3, atol=2e-4)


def test_karras_levels_and_flow_are_written() -> None:
    karras = write_scheduler(DiffusionConfig(), SamplingConfig(sampler="euler", sigmas="karras"))
    assert karras["_class_name"] == "EulerDiscreteScheduler" and karras["use_karras_sigmas"]
    flow = DiffusionConfig(schedule=ScheduleConfig(kind="flow", shift=3.0), prediction_type="flow")
    config = write_scheduler(flow, SamplingConfig(sampler="euler"))
    assert config == {"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000, "shift": 3.0}
    assert read_scheduler(config).schedule == flow.schedule


UNWRITABLE = {
    "sampler": (DiffusionConfig(), SamplingConfig(sampler="rk4"), "sampling.sampler=rk4 cannot be written"),
    "schedule": (
        DiffusionConfig(schedule=ScheduleConfig(kind="sqrt")),
        SamplingConfig(),
        "schedule.kind=sqrt cannot be written for diffusers' DDIMScheduler; use one of linear, scaled_linear, cosine",
    ),
    "spacing": (
        DiffusionConfig(),
        SamplingConfig(sampler="unipc", spacing="leading"),
        "sampling.spacing=leading is another in diffusers' UniPCMultistepScheduler",
    ),
    "sigmas": (
        DiffusionConfig(),
        SamplingConfig(sampler="unipc", sigmas="karras"),
        "sampling.sigmas=karras cannot be written for diffusers' UniPCMultistepScheduler",
    ),
    "clipping": (DiffusionConfig(), SamplingConfig(clipping="static"), "sampling.clipping=static is another"),
    "zero SNR": (
        DiffusionConfig(schedule=ScheduleConfig(zero_terminal_snr=True), prediction_type="v"),
        SamplingConfig(sampler="heun"),
        "schedule.zero_terminal_snr=True cannot be written for diffusers' HeunDiscreteScheduler",
    ),
    "flow": (
        DiffusionConfig(schedule=ScheduleConfig(kind="flow"), prediction_type="flow"),
        SamplingConfig(sampler="unipc"),
        "sampling.sampler=unipc with prediction_type=flow .* cannot be written for diffusers on schedule.kind=flow",
    ),
}


@pytest.mark.parametrize("name", UNWRITABLE)
def test_what_diffusers_does_not_have_is_not_written(name: str) -> None:
    diffusion, sampling, message = UNWRITABLE[name]
    with pytest.raises(UserError, match=message):
        write_scheduler(diffusion, sampling)


# --- cases -----------------------------------------------------------------------------------------------------------


def test_the_posterior_is_pytorchs() -> None:
    for ours, reference in run_sampler_case(GOLDEN / "posterior.npz").values():
        np.testing.assert_allclose(ours, reference, rtol=1e-6, atol=1e-7)


def write_case(path: Path, config: dict[str, Any], **arrays: np.ndarray) -> Path:
    x = np.random.default_rng(0).normal(size=(1, 2, 3, 3))
    default = {"x_init": x, "timesteps": np.arange(4.0), "iterates": np.stack([x] * 5)}
    np.savez(path, config=json.dumps(config), **default | arrays)
    return path


def test_noise_is_taken_from_the_case_and_missed_where_it_lacks(tmp_path: Path) -> None:
    config = {"scheduler": "EulerAncestralDiscreteScheduler", "steps": 4}
    with pytest.raises(UserError, match=r"EulerAncestralDiscreteScheduler draws fresh noise.* needs an array `noises`"):
        run_sampler_case(write_case(tmp_path / "none.npz", config))
    noises = np.random.default_rng(1).normal(size=(4, 1, 2, 3, 3))
    whole = run_sampler_case(write_case(tmp_path / "all.npz", config, noises=noises))["iterates"][0]
    used = run_sampler_case(write_case(tmp_path / "used.npz", config, noises=noises[:3]))["iterates"][0]
    np.testing.assert_array_equal(whole, used)  # the last step, to clean data, takes none
    other = run_sampler_case(write_case(tmp_path / "other.npz", config, noises=-noises))["iterates"][0]
    assert np.abs(whole - other).max() > 0.1
    with pytest.raises(UserError, match="`noises` has 2 entries for 4 steps, of which 3 take noise"):
        run_sampler_case(write_case(tmp_path / "few.npz", config, noises=noises[:2]))


def test_a_case_is_computed_in_float64(tmp_path: Path) -> None:
    config = {"scheduler": "DDIMScheduler", "steps": 4, "eta": 0.0}
    for ours, _ in run_sampler_case(write_case(tmp_path / "case.npz", config)).values():
        assert ours.dtype in (np.float64, np.int64)


def test_files_that_are_no_cases_are_told(tmp_path: Path) -> None:
    np.savez(tmp_path / "other.npz", x=np.zeros(2))
    assert not is_sampler_case(tmp_path / "other.npz")
    assert not is_sampler_case(tmp_path / "missing.npz")
    assert is_sampler_case(GOLDEN / "ddim_20.npz") and is_sampler_case(GOLDEN / "posterior.npz")
    with pytest.raises(UserError, match=r"other.npz is not a sampler case: an .npz file with `config` and `iterates`"):
        run_sampler_case(tmp_path / "other.npz")
    x = np.zeros((1, 2))
    np.savez(tmp_path / "broken.npz", config="{", x_init=x, iterates=x[None], timesteps=np.zeros(1))
    with pytest.raises(UserError, match=r"broken.npz: `config` is not JSON"):
        run_sampler_case(tmp_path / "broken.npz")
    np.savez(tmp_path / "list.npz", config="[1]", iterates=x[None])
    with pytest.raises(UserError, match=r"list.npz: `config` is \[1\]; give an object with the scheduler"):
        run_sampler_case(tmp_path / "list.npz")
    np.savez(tmp_path / "few.npz", config='{"scheduler": "DDIMScheduler", "steps": 2}', iterates=x[None])
    with pytest.raises(UserError, match="the case has no array 'timesteps'; it has config, iterates"):
        run_sampler_case(tmp_path / "few.npz")
    np.savez(
        tmp_path / "word.npz",
        config='{"scheduler": "DDIMScheduler", "steps": "x"}',
        x_init=x,
        iterates=x[None],
        timesteps=np.zeros(1),
    )
    with pytest.raises(UserError, match="DDIMScheduler: steps='x' of the case must be a whole number above 0"):
        run_sampler_case(tmp_path / "word.npz")
    for bad in (np.array("x"), np.float64(1.0)):
        given = {"x_init": bad, "iterates": x[None], "timesteps": np.zeros(1)}
        np.savez(tmp_path / "start.npz", config='{"scheduler": "DDIMScheduler"}', **given)
        with pytest.raises(
            UserError, match=r"DDIMScheduler: `x_init` of the case is (<U1|float64)\[\], not a row of numb"
        ):
            run_sampler_case(tmp_path / "start.npz")


@pytest.mark.parametrize("content", [b"", b"PK", b"\x93NUMPY"])
def test_a_damaged_file_is_no_case(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "case.npz").write_bytes(content)
    with pytest.raises(UserError, match=r"case.npz cannot be read as arrays \(.*\); restore it from a copy"):
        is_sampler_case(tmp_path / "case.npz")


def test_a_single_array_is_no_case(tmp_path: Path) -> None:
    with (tmp_path / "case.npz").open("wb") as file:
        np.save(file, np.zeros(2))
    with pytest.raises(UserError, match=r"case.npz cannot be read as arrays"):
        is_sampler_case(tmp_path / "case.npz")
