"""How a step scales, as a picture: memory, collectives and predicted efficiency over the number of chips."""

from collections.abc import Sequence
from pathlib import Path

from ldm_jax.planning.plan import Plan


def draw_scaling(plans: Sequence[Plan], path: Path) -> None:
    """Write a PNG with three panels over the number of chips."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    chips = [plan.topology.num_chips for plan in plans]
    figure, (memory, traffic, efficiency) = pyplot.subplots(1, 3, figsize=(13, 4), constrained_layout=True)
    peaks = [(plan.compiled.memory.peak or 0) / 2**30 for plan in plans]
    memory.plot(chips, peaks, "o-")
    memory.axhline(plans[0].usable_memory / 2**30, color="gray", linestyle=":")
    memory.set(title="peak of a chip (dotted: usable)", ylabel="GiB", ylim=(0, None))
    sent = [sum(c.num_bytes for c in plan.compiled.collectives) / 1e9 for plan in plans]
    traffic.plot(chips, sent, "o-")
    traffic.set(title="payload of collectives, a chip and step", ylabel="GB", ylim=(0, None))
    fitting = [(plan.topology.num_chips, plan.prediction) for plan in plans if plan.prediction is not None]
    efficiency.plot([n for n, _ in fitting], [100 * prediction.mfu for _, prediction in fitting], "o-")
    efficiency.set(title="MFU, predicted and not measured", ylabel="%", ylim=(0, None))
    for axes in (memory, traffic, efficiency):
        axes.set_xscale("log", base=2)
        axes.set_xticks(chips, [str(count) for count in chips])
        axes.set_xlabel("chips")
        axes.grid(alpha=0.3)
    first = plans[0]
    figure.suptitle(f"{first.experiment} on {first.topology.chip.name}, {first.batch_per_chip:g} pictures a chip")
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
