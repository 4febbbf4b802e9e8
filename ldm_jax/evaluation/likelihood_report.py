"""What is told of likelihoods: a score for each total, the terms behind it for programs, and a picture of them."""

from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from ldm_jax.evaluation.likelihood import LikelihoodOptions, Likelihoods
from ldm_jax.evaluation.scores import Score, ScoreOptions, mean_score

_Z = 1.96


def likelihood_scores(found: Likelihoods, options: LikelihoodOptions, bootstrap: int) -> list[Score]:
    """Bits per dimension of latents and of pictures, each the mean over the pictures with its interval."""
    words = {
        "bound": "variational bound, one draw of every timestep",
        "flow": f"probability flow, {options.flow_steps} timesteps, "
        + (f"{options.flow_probes} random signs" if options.flow_probes else "exact trace"),
    }
    totals = {"latent": found.latent_totals(), "picture": found.picture_totals()}
    sizes = {"latent": found.latent_size, "picture": found.picture_size}
    scores = []
    for of, values_of in totals.items():
        for name, values in values_of.items():
            protocol = f"{words[name]}; bits for each of {sizes[of]} dimensions, lower is better"
            how = ScoreOptions(label=of, protocol=protocol, bootstrap=bootstrap, seed=options.seed)
            scores.append(mean_score(f"bits_{name}_{of}", values, how))
    return scores


def terms_record(found: Likelihoods) -> dict[str, Any]:
    """The terms as JSON values: means over the pictures with half of their 95 % interval; `kl` has one a timestep."""
    terms: dict[str, Any] = {name: _mean(values) for name, values in (found.latent | found.picture).items()}
    if "kl" in terms:
        terms["kl"]["timestep"] = list(range(1, found.latent["kl"].shape[1] + 1))
        terms["kl_sum"] = _mean(found.latent["kl"].sum(1))
    return {
        "unit": "bits per dimension of the latent; reconstruction and entropy of the picture",
        "latent_size": found.latent_size,
        "picture_size": found.picture_size,
        "decoder_scale": found.scale,
        "terms": terms,
    }


def _mean(values: Float[np.ndarray, "n *t"]) -> dict[str, Any]:
    half = _Z * values.std(axis=0, ddof=1) / np.sqrt(len(values))
    return {"mean": values.mean(axis=0, dtype=np.float64).tolist(), "half_interval": half.tolist()}


def draw_terms(found: Likelihoods, path: Path, title: str) -> None:
    """Write a PNG: the KL of every timestep with its interval, and the terms of the bounds side by side."""
    from matplotlib.figure import Figure  # a second of import that only this needs

    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    kl = found.latent["kl"]
    timesteps, told = np.arange(1, kl.shape[1] + 1), _mean(kl)
    mean, half = np.asarray(told["mean"]), np.asarray(told["half_interval"])
    left.fill_between(timesteps, np.maximum(mean - half, mean / 10), mean + half, alpha=0.3)
    left.plot(timesteps, mean, linewidth=0.8)
    left.set(xlabel="timestep", ylabel="bits per dimension of the latent", yscale="log", title="KL of each timestep")
    names, values = zip(*_bars(found), strict=True)
    right.barh(names, values)
    for row, value in enumerate(values):
        right.text(value, row, f" {value:.4g}", va="center", ha="left" if value >= 0 else "right")
    right.axvline(0, color="gray", linewidth=0.8)
    right.margins(x=0.25)
    right.invert_yaxis()
    right.set(xlabel="bits per dimension", title="terms")
    figure.suptitle(f"{title}, n = {len(kl)}")
    figure.savefig(path, dpi=110, format="png")


def _bars(found: Likelihoods) -> list[tuple[str, float]]:
    latent = {
        "prior": found.latent["prior"],
        "sum of KL": found.latent["kl"].sum(1),
        "decoder": found.latent["decoder"],
    }
    picture = (
        {"reconstruction": found.picture["reconstruction"], "- entropy": -found.picture["entropy"]}
        if (found.picture)
        else {}
    )
    totals = {f"latent: {name}": values for name, values in {**latent, **found.latent_totals()}.items()}
    totals |= {f"picture: {name}": values for name, values in {**picture, **found.picture_totals()}.items()}
    return [(name, float(values.mean())) for name, values in totals.items()]
