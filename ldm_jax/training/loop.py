"""The host's loop around a stage: restore, step, watch, log, evaluate, draw, save; what is pure lies in the step."""

import logging
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Key

from ldm_jax import sharding
from ldm_jax.config import TrainingConfig
from ldm_jax.errors import UserError
from ldm_jax.model import Params, num_parameters
from ldm_jax.progress import Progress, progress
from ldm_jax.training import processes
from ldm_jax.training.checkpoints import Checkpoints, abstract_like
from ldm_jax.training.keep_policy import KeepPolicy
from ldm_jax.training.logging import MetricsLog, draw_losses
from ldm_jax.training.observed_step import ObservedStep
from ldm_jax.training.profile import Profile
from ldm_jax.training.program import jit_step
from ldm_jax.training.run_folder import RunFolder
from ldm_jax.training.speed import Speed
from ldm_jax.training.startup import Startup
from ldm_jax.training.state import TrainState
from ldm_jax.training.step import Batch, Metrics, Step
from ldm_jax.training.stopping import Interrupted, StopRequests

logger = logging.getLogger(__name__)


class TrainingDiverged(UserError):
    """The loss or a gradient stopped being a finite number."""

    exit_code = 3
    comes_to_all = True


@dataclass(frozen=True)
class Scoring:
    """Scores that take longer than a held-out loss."""

    every: int
    """Steps between two."""
    names: tuple[str, ...]
    """Of the scores."""
    score: Callable[[TrainState, int], dict[str, float]]
    """Those of the state after a step that can be computed; all processes call it at the same steps."""


@dataclass(frozen=True)
class Stage:
    """What distinguishes one stage from another for the loop."""

    name: str
    """`autoencoder`, `diffusion` or `classifier`; names its checkpoints and its lines in the metrics."""
    training: TrainingConfig
    frozen: Params
    """Parameters that the stage uses and does not train."""
    initial: Params
    """Parameters that training starts from; what is not among them is drawn."""
    init: Callable[[Key[Array, ""], Params, Params], TrainState]
    """Root key, frozen and initial parameters to the first state; traced."""
    step: Step
    batches: Callable[[int], Iterator[Batch]]
    """Global batches on the devices, from the given step on."""
    evaluate: Callable[[TrainState], dict[str, float]]
    """Held-out metrics."""
    draw: Callable[[TrainState, int], None]
    """Pictures of the state after a step."""
    alarms: Callable[[dict[str, float], int], int] = lambda metrics, step: 0
    """Warns of what the metrics of a step say is wrong; how many things are."""
    scoring: Scoring | None = None
    """What else is measured, at a rhythm of its own."""
    is_followed: bool = False
    """Whether another stage of the same run comes behind it."""
    constants: Callable[[], Params] = dict
    """Reads what the loss measures with (`TrainState.constants`), once there is a step to do."""


def measures(scoring: Scoring | None) -> tuple[str, ...]:
    """Names of what is measured of a state."""
    return ("heldout_loss", *(() if scoring is None else scoring.names))


def run_stage(
    stage: Stage, run: RunFolder, mesh: Mesh, root: Key[Array, ""], startup: Startup | None = None
) -> TrainState:
    """Train a stage to its last step, from its newest good checkpoint if there is one, and return the final state.

    `startup` has measured the start so far; without it the start begins here.

    Raises:
        TrainingDiverged: a loss or gradient is not finite; the last good checkpoint is kept.
        Interrupted: SIGTERM or SIGINT came, to whichever process; the state was saved.
        UserError: a checkpoint cannot be written, all of them are damaged, or the best are to be kept by a metric that
            is not measured.
    """
    sharding.check_batch_size(
        f"{stage.name} training", stage.training.batch_size, stage.training.gradient_accumulation, mesh
    )
    startup = startup or Startup()
    keep = KeepPolicy.of(stage.training)
    keep.check_measured(measures(stage.scoring))
    checkpoints = run.checkpoints(stage.name, keep)
    with processes.first_before_others():
        if processes.is_first():
            checkpoints.remove_unfinished()
            run.snapshots(stage.name).remove_unfinished()
    state, shardings = _start(stage, checkpoints, mesh, root)
    start = _same_everywhere(int(state.step), run)
    if start >= stage.training.num_steps:
        logger.info("%s: already trained for %d steps", stage.name, start)
        return state
    logger.info(
        "%s: step %d of %d, %.2f M parameters, batch %d",
        *(stage.name, start, stage.training.num_steps, num_parameters(state.params) / 1e6, stage.training.batch_size),
    )
    state, shardings = _with_constants(stage, state, shardings, mesh)
    step = ObservedStep(stage.name, jit_step(stage.step, shardings, mesh), startup, _profile(stage, run))
    log = MetricsLog(run, stage.name, start)
    try:
        with StopRequests() as stop:
            state = _Loop(stage, run, checkpoints, log, root, mesh, step, stop).run(state, start)
    finally:
        step.close()
        try:
            log.close()
        finally:
            checkpoints.wait()
    return state


def _profile(stage: Stage, run: RunFolder) -> Profile | None:
    steps = stage.training.profile_steps
    return None if steps is None else Profile(Path(run.path) / "profile" / stage.name, *steps)


def _same_everywhere(start: int, run: RunFolder) -> int:
    """The step that training starts at, which every process has found in the run folder for itself."""
    steps = sharding.to_all(np.asarray(start)).tolist()
    if len(set(steps)) > 1:
        raise UserError(
            f"the processes find checkpoints of different steps ({steps}) in {run.path}; it has to be one folder that "
            "all of them see: a shared file system, or gs://"
        )
    return start


def _start(stage: Stage, checkpoints: Checkpoints, mesh: Mesh, root: Key[Array, ""]) -> tuple[TrainState, TrainState]:
    """The state to go on from, and its shardings; it is created and restored in shards, never gathered."""
    abstract = jax.eval_shape(stage.init, root, stage.frozen, stage.initial)
    shardings = sharding.state_shardings(mesh, abstract)
    wanted = to_items(abstract)
    items = abstract_like(wanted, sharding.state_shardings(mesh, wanted))
    restored = checkpoints.restore_newest(items)
    if restored is None:
        init = jax.jit(stage.init, out_shardings=shardings, compiler_options=_quick())
        return init(root, stage.frozen, sharding.place(mesh, stage.initial)), shardings
    logger.info("%s: going on from the checkpoint of step %d", stage.name, restored[0])
    return from_items(restored[1], abstract), shardings


def _with_constants(
    stage: Stage, state: TrainState, shardings: TrainState, mesh: Mesh
) -> tuple[TrainState, TrainState]:
    """The state with what the loss measures with, and where that lies: whole on every device."""
    constants = sharding.place_whole(mesh, stage.constants())
    placed = jax.tree.map(lambda leaf: leaf.sharding, constants)
    return state._replace(constants=constants), shardings._replace(constants=placed)


def _quick() -> dict[str, int] | None:
    """Compiler options for what runs once: on a CPU, compiling an initialisation takes longer than any gain from it."""
    return {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else None


def to_items(state: TrainState) -> dict[str, Any]:
    """A state as a checkpoint holds it, without constants: `model`, complete for sampling, and `training`, the rest."""
    training = {"step": state.step, "params": state.params, "opt_state": state.opt_state}
    further = {"profiles": state.profiles, "kept": state.of_training}
    training |= {name: tree for name, tree in further.items() if tree}
    return {"model": state.model_params, "training": training}


def from_items(items: dict[str, Any], abstract: TrainState) -> TrainState:
    """Inverse of `to_items`; `abstract` tells which of the model's parameters are trained."""
    model = items["model"]
    average = {name: model[name] for name in abstract.ema_params}
    training = items["training"]
    kept = {**model, **training.get("kept", {})}
    frozen = {name: kept[name] for name in abstract.frozen}
    structure = jax.tree.structure(abstract.opt_state)
    opt_state = jax.tree.unflatten(structure, jax.tree.leaves(training["opt_state"]))
    profiles = training.get("profiles", {})
    return TrainState(training["step"], training["params"], average, opt_state, frozen, profiles, {})


@dataclass
class _Loop:
    stage: Stage
    run_folder: RunFolder
    checkpoints: Checkpoints
    log: MetricsLog
    root: Key[Array, ""]
    mesh: Mesh
    step: ObservedStep
    stop: StopRequests
    waited: float = 0.0
    since: float = 0.0
    steps_since: int = 0
    previous: tuple[int, Metrics] | None = field(default=None)

    def run(self, state: TrainState, start: int) -> TrainState:
        training = self.stage.training
        batches = self.stage.batches(start)
        batch = next(batches)
        self._restart_clock()
        silent = not processes.is_first()
        with progress(self.stage.name, training.num_steps, "step", done=start, silent=silent) as bar:
            for number in range(start + 1, training.num_steps + 1):
                processes.note(f"at step {number} of {self.stage.name}", "busy" if number == start + 1 else "step")
                state, metrics = self.step(state, batch, self.root)
                if number == start + 1:
                    self.since += self.step.compile_seconds  # which is no part of the time of a step
                if number < training.num_steps:
                    batch = self._next(batches)  # while the devices work
                self._check(self.previous)  # of the step before: waiting for this one would idle the devices
                self.previous = (number, metrics)
                self.steps_since += 1
                bar.update()
                self._after(state, number, metrics, bar)
        return state

    def _next(self, batches: Iterator[Batch]) -> Batch:
        began = time.perf_counter()
        batch = next(batches)
        self.waited += time.perf_counter() - began
        return batch

    def _restart_clock(self) -> None:
        self.waited, self.steps_since, self.since = 0.0, 0, time.perf_counter()

    def _after(self, state: TrainState, number: int, metrics: Metrics, bar: Progress) -> None:
        training = self.stage.training
        last = number == training.num_steps
        stop = self.stop.arrived()

        def due(every: int) -> bool:
            return last or number % every == 0

        rhythms = [training.eval_every, training.sample_every, training.checkpoint_every]
        rhythms += [training.snapshot_every] if training.ema_profiles else []
        if stop or any(map(due, rhythms)):
            processes.note(f"evaluating, drawing or saving after step {number} of {self.stage.name}")

        values: dict[str, float] = {}
        measured: dict[str, float] = {}
        if due(training.log_every):
            values |= self._report(number, metrics, bar)
        if due(training.eval_every) or (training.keep_best > 0 and due(training.checkpoint_every)):
            self._check(self.previous)
            measured |= self._heldout(state, number)
        if self._scores_are_due(number):
            measured |= self._scores(state, number)
        values |= measured
        if values:
            self.log.write(number, values)
        if due(training.sample_every):
            self.stage.draw(state, number)
            if processes.is_first():
                draw_losses(self.run_folder)
        if training.ema_profiles and due(training.snapshot_every):
            self._snapshot(state, number)
        if due(training.checkpoint_every) or stop:
            self._check(self.previous)
            self._check_parameters(state, number)
            self.log.flush()  # no line that a checkpoint stands for may come after it
            # what a signal asked for is not measured as the others are, and is never the best
            self.checkpoints.save(number, to_items(state), measured if due(training.checkpoint_every) else {})
        if (stop and not last) or (last and self.stage.is_followed and (stop or self.stop.asked)):
            self.checkpoints.wait()
            raise Interrupted(
                f"{self.stage.name} was asked to stop after step {number} of {training.num_steps}, and is saved; the "
                "same command goes on from there"
            )
        if due(training.eval_every) or due(training.sample_every) or self._scores_are_due(number):
            self._restart_clock()

    def _snapshot(self, state: TrainState, number: int) -> None:
        self._check(self.previous)
        self._check_parameters(state, number)
        snapshots = self.run_folder.snapshots(self.stage.name)
        snapshots.save(number, {"profiles": state.profiles})
        snapshots.wait()  # else a checkpoint behind it could be complete before it is

    def _report(self, number: int, metrics: Metrics, bar: Progress) -> dict[str, float]:
        self._check((number, metrics))
        values = {name: float(value) for name, value in metrics.items() if np.ndim(value) == 0}
        seconds = time.perf_counter() - self.since
        kind, count = self.mesh.devices.flat[0].device_kind, self.mesh.size
        speed = Speed.on(kind, count, batch_size=self.stage.training.batch_size, flops=self.step.flops)
        self.stage.alarms(values, number)
        values |= speed.figures(steps=self.steps_since, seconds=seconds, waited=self.waited)
        bar.set_postfix_str(f"{values['images_per_second']:.0f} images/s, loss {values['loss']:.4f}", refresh=False)
        self._restart_clock()
        return values

    def _heldout(self, state: TrainState, number: int) -> dict[str, float]:
        values = self.stage.evaluate(state)
        bad = [f"{name} {value}" for name, value in values.items() if not math.isfinite(value)]
        if bad:
            raise self._diverged(number, ", ".join(bad))
        return values

    def _scores_are_due(self, number: int) -> bool:
        training, scoring = self.stage.training, self.stage.scoring
        if scoring is None:
            return False
        goes_by_one = training.keep_best > 0 and training.best_metric in scoring.names
        rhythms = (scoring.every, training.checkpoint_every) if goes_by_one else (scoring.every,)
        return number == training.num_steps or any(number % every == 0 for every in rhythms)

    def _scores(self, state: TrainState, number: int) -> dict[str, float]:
        assert self.stage.scoring is not None  # or they are not due
        self._check(self.previous)
        processes.note(f"scoring samples after step {number} of {self.stage.name}")
        values = self.stage.scoring.score(state, number)
        return {name: value for name, value in values.items() if math.isfinite(value)}

    def _check(self, done: tuple[int, Metrics] | None) -> None:
        if done is None:
            return
        number, metrics = done
        loss, norm = float(metrics["loss"]), float(metrics["grad_norm"])
        if math.isfinite(loss) and math.isfinite(norm):
            return
        where = self._named_where(~np.isfinite(np.asarray(metrics["leaf_norms"])), "the gradient is")
        raise self._diverged(number, f"loss {loss}, gradient norm {norm}{where}")

    def _check_parameters(self, state: TrainState, number: int) -> None:
        """A finite gradient may still make parameters that are not; no checkpoint holds such."""
        bad = np.logical_or(*(sharding.to_host(_not_finite(tree)) for tree in (state.params, state.ema_params)))
        if bad.any():
            raise self._diverged(number, self._named_where(bad, "what came out is").removeprefix("; "))

    def _named_where(self, bad: np.ndarray, what: str) -> str:
        """Which parameters are bad; empty if none is."""
        if not bad.any():
            return ""
        abstract = jax.eval_shape(self.stage.init, self.root, self.stage.frozen, self.stage.initial)
        paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(abstract.params)]
        first = "/".join(sharding.path_names(paths[int(np.argmax(bad))]))
        return f"; {what} not finite in {int(bad.sum())} of {len(paths)} parameters, first {first}"

    def _diverged(self, number: int, what: str) -> TrainingDiverged:
        self.checkpoints.wait()
        kept = self.checkpoints.steps()
        return TrainingDiverged(
            f"{self.stage.name} diverged at step {number}: {what}. "
            + (f"The checkpoint of step {kept[-1]} is kept. " if kept else "There is no checkpoint yet. ")
            + "Use a lower learning rate, a longer warm-up or a smaller max_grad_norm, in another folder (--run-dir)"
        )


@jax.jit
def _not_finite(tree: Any) -> Bool[Array, " leaves"]:
    """Which leaves of a tree hold a number that is not finite."""
    return jnp.stack([~jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(tree)])
