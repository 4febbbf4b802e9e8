"""Training recipes that PyTorch follows step by step, followed here to the same losses, norms and parameters."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ldm_jax.interop.cases.parity import run_case

torch = pytest.importorskip("torch", reason="the parity extra is missing")
diffusers = pytest.importorskip("diffusers", reason="the parity extra is missing")
safetensors_torch = pytest.importorskip("safetensors.torch", reason="the parity extra is missing")

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_device")]

GOLDEN = Path(__file__).parent / "golden"
SCHEDULE = {"num_train_timesteps": 1000, "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
BASE: dict[str, Any] = {
    "initial_params": "unet",
    "schedule": SCHEDULE,
    "prediction_type": "epsilon",
    "optimizer": "adamw",
    "learning_rate": 1e-3,
    "betas": [0.9, 0.999],
    "eps": 1e-8,
    "weight_decay": 0.01,
    "max_grad_norm": None,
    "ema_decay": None,
    "min_snr_gamma": None,
    "gradient_accumulation": 1,
    "linear_warmup_steps": 0,
    "steps": 5,
    "final_params": "params",
}
RECIPES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "x0": ({"prediction_type": "sample"}, {}),
    "min_snr_epsilon": ({"min_snr_gamma": 5.0}, {}),
    "warmup_from_zero": ({"linear_warmup_steps": 3}, {"from_zero": True}),
    "ema_warmed_up": ({"ema_decay": 0.9, "final_params": "ema"}, {"ema_warmup": True}),
    "adam": ({"optimizer": "adam", "weight_decay": 0.0, "betas": [0.5, 0.9]}, {}),
    "all": (
        {
            **{"prediction_type": "v_prediction", "min_snr_gamma": 5.0, "max_grad_norm": 1.0, "ema_decay": 0.99},
            **{"gradient_accumulation": 2, "linear_warmup_steps": 3, "final_params": "ema"},
        },
        {},
    ),
}


def make_case(path: Path, changes: dict[str, Any], *, from_zero: bool = False, ema_warmup: bool = False) -> Path:
    """Follow a recipe in PyTorch, and write it down as a case."""
    recipe = {**BASE, **changes}
    unet = diffusers.UNet2DConditionModel.from_pretrained(GOLDEN / "unet_sd1", local_files_only=True)
    unet.save_pretrained(path / "unet")
    numbers = np.random.default_rng(0)
    parts, steps = recipe["gradient_accumulation"], recipe["steps"]
    arrays: dict[str, Any] = {
        "z0": numbers.normal(size=(steps * parts, 2, 4, 16, 16)).astype(np.float32),
        "noise": numbers.normal(size=(steps * parts, 2, 4, 16, 16)).astype(np.float32),
        "context": numbers.normal(size=(steps * parts, 2, 7, 12)).astype(np.float32),
        "timesteps": numbers.integers(0, 1000, (steps * parts, 2)),
    }
    kind = {"adamw": torch.optim.AdamW, "adam": torch.optim.Adam}[recipe["optimizer"]]
    optimizer = kind(
        unet.parameters(),
        lr=recipe["learning_rate"],
        betas=tuple(recipe["betas"]),
        eps=recipe["eps"],
        weight_decay=recipe["weight_decay"],
    )
    average = [p.detach().clone() for p in unet.parameters()]
    losses, norms = [], []
    for step in range(steps):
        warmup = recipe["linear_warmup_steps"]
        share = min(1.0, (step if from_zero else step + 1) / warmup) if warmup else 1.0
        optimizer.param_groups[0]["lr"] = recipe["learning_rate"] * share
        optimizer.zero_grad()
        total = 0.0
        for part in range(step * parts, (step + 1) * parts):
            loss = loss_of(unet, recipe, {name: torch.from_numpy(values[part]) for name, values in arrays.items()})
            (loss / parts).backward()
            total += loss.item() / parts
        norms.append(float(torch.nn.utils.clip_grad_norm_(unet.parameters(), recipe["max_grad_norm"] or float("inf"))))
        losses.append(total)
        optimizer.step()
        decay = recipe["ema_decay"] or 0.0
        decay = min(decay, (2 + step) / (11 + step)) if ema_warmup else decay
        for a, p in zip(average, unet.parameters(), strict=True):
            a.mul_(decay).add_(p.detach(), alpha=1 - decay)
    names = [name for name, _ in unet.named_parameters()]
    final = average if recipe["final_params"] == "ema" else [p.detach() for p in unet.parameters()]
    safetensors_torch.save_file(
        {name: value.contiguous() for name, value in zip(names, final, strict=True)}, path / "final_params.safetensors"
    )
    np.savez(path / "io.npz", **arrays, losses=np.array(losses), grad_norms=np.array(norms))
    (path / "recipe.json").write_text(json.dumps(recipe))
    return path


def loss_of(unet: Any, recipe: dict[str, Any], batch: dict[str, Any]) -> Any:
    """As diffusers' training scripts compute it."""
    scheduler = diffusers.DDPMScheduler(**SCHEDULE)
    t = batch["timesteps"]
    noisy = scheduler.add_noise(batch["z0"], batch["noise"], t)
    kind = recipe["prediction_type"]
    target = {"epsilon": batch["noise"], "sample": batch["z0"]}.get(kind)
    if target is None:
        target = scheduler.get_velocity(batch["z0"], batch["noise"], t)
    error = (unet(noisy, t, batch["context"]).sample - target).square().mean(dim=(1, 2, 3))
    gamma = recipe["min_snr_gamma"]
    if gamma is None:
        return error.mean()
    alpha_bar = scheduler.alphas_cumprod[t]
    snr = alpha_bar / (1 - alpha_bar)
    weight = torch.clamp(snr, max=gamma) / (snr + 1 if kind == "v_prediction" else snr)
    return (error * weight).mean()


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_is_followed(name: str, tmp_path: Path):
    changes, convention = RECIPES[name]
    rows = run_case(make_case(tmp_path, changes, **convention))
    assert all(row.passed and row.relative < 1e-3 for row in rows), rows
    told = {"from_zero": "warm-up s / steps", "ema_warmup": "EMA warmed up as LDM's"}
    assert {row.note for row in rows} == {told[next(iter(convention))] if convention else ""}
