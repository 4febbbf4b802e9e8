"""The host's loop, around a stage of four numbers: resuming to the bit, stopping on NaN and on signals, rhythm."""

import dataclasses
import json
import logging
import re
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import ANY

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh

from ldm_jax import rng, sharding
from ldm_jax.config import MeshConfig, TrainingConfig
from ldm_jax.errors import UserError
from ldm_jax.training.logging import read_metrics
from ldm_jax.training.loop import Scoring, Stage, TrainingDiverged, run_stage
from ldm_jax.training.run_folder import RunFolder
from ldm_jax.training.state import TrainState
from ldm_jax.training.step import make_step
from ldm_jax.training.stopping import Interrupted

CONFIG = TrainingConfig(
    batch_size=8, num_steps=6, ema_decay=0.9, log_every=1, eval_every=3, sample_every=9, checkpoint_every=2
)
ROOT = rng.root_key(0)
TIMES = ("seconds_per_step", "images_per_second", "images_per_second_per_device", "input_wait")
NAN_STEP = 4


def loss_fn(params, frozen, batch, root, step):
    """Least squares with noise that is drawn by name, step and sample."""
    noise = rng.normal(rng.sample_keys(rng.named_key(root, "noise", step), batch["sample_index"]), ())
    error = batch["x"] @ params["layer"]["w"] + params["layer"]["b"] - frozen["scale"] * noise
    return jnp.mean(jnp.square(error)), {}


def batch_at(step: int) -> dict[str, np.ndarray]:
    x = np.random.default_rng(step).normal(size=(8, 3)).astype(np.float32)
    return {"x": x, "sample_index": np.arange(8 * step, 8 * step + 8, dtype=np.int32)}


@dataclasses.dataclass
class Toy:
    """A stage with its folder, and a record of what the loop asked of it."""

    path: Path
    mesh: Mesh
    config: TrainingConfig = CONFIG
    change: Callable[[int, dict[str, np.ndarray]], dict[str, np.ndarray]] = lambda step, batch: batch
    """Called with the number of a step (from 1) and its batch when the batch is read."""
    initial: dict[str, Any] = dataclasses.field(default_factory=dict)
    is_followed: bool = False
    drawn: list[int] = dataclasses.field(default_factory=list)
    evaluated: list[int] = dataclasses.field(default_factory=list)

    def stage(self) -> Stage:
        optimizer = optax.adam(optax.cosine_decay_schedule(0.1, self.config.num_steps))

        def init(root: Any, frozen: Any, initial: Any) -> TrainState:
            params = {"layer": {"b": jnp.zeros(()), "w": jax.random.normal(root, (3,))}}
            return TrainState.create({**params, **initial}, frozen, optimizer, len(self.config.ema_profiles))

        return Stage(
            name="toy",
            training=self.config,
            frozen=sharding.place(self.mesh, {"scale": jnp.float32(0.1)}),
            initial=self.initial,
            init=init,
            step=make_step(loss_fn, optimizer, self.config),
            batches=self._batches,
            evaluate=self._evaluate,
            draw=lambda state, step: self.drawn.append(step),
            is_followed=self.is_followed,
        )

    def _batches(self, start: int) -> Iterator[Any]:
        for step in range(start, 10**6):
            own = {name: rows[list(sharding.local_rows(self.mesh, 8))] for name, rows in batch_at(step).items()}
            yield sharding.put_batch(self.mesh, self.change(step + 1, own))

    def _evaluate(self, state: TrainState) -> dict[str, float]:
        self.evaluated.append(int(state.step))
        return {"heldout_loss": float(jnp.sum(state.model_params["layer"]["w"]))}

    def run(self) -> TrainState:
        self.path.mkdir(exist_ok=True)
        return run_stage(self.stage(), RunFolder(self.path), self.mesh, ROOT)

    def metrics(self) -> list[dict[str, Any]]:
        lines = read_metrics(self.path / "metrics.jsonl")
        return [{name: value for name, value in line.items() if name not in TIMES} for line in lines]

    def saved(self) -> list[int]:
        return RunFolder(self.path).checkpoints("toy").steps()


@pytest.fixture
def toy(tmp_path: Path) -> Toy:
    return Toy(tmp_path / "run", sharding.make_mesh(MeshConfig(), jax.devices()[:1]))


@pytest.fixture
def other(toy: Toy, tmp_path: Path) -> Toy:
    """The same again in another folder."""
    return dataclasses.replace(toy, path=tmp_path / "other", drawn=[], evaluated=[])


def assert_same(one: Any, two: Any) -> None:
    assert jax.tree.structure(one) == jax.tree.structure(two)
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(np.asarray(a), np.asarray(b)), one, two)


def at(step: int, act: Callable[[dict[str, np.ndarray]], object]) -> Callable[..., dict[str, np.ndarray]]:
    """A change of the batch of one step."""

    def change(number: int, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        if number == step:
            act(batch)
        return batch

    return change


class Killed(Exception):
    """Stands for a process that ends without a chance to save."""


def kill(batch: object) -> None:
    raise Killed


def terminate(batch: object) -> None:
    signal.raise_signal(signal.SIGTERM)


def spoil(batch: dict[str, np.ndarray]) -> None:
    batch["x"][2, 1] = np.nan


@pytest.mark.parametrize("killed_at", [3, *(pytest.param(step, marks=pytest.mark.slow) for step in (1, 4, 6))])
def test_a_killed_run_goes_on_to_the_same_bits(toy: Toy, other: Toy, killed_at: int):
    whole = toy.run()
    other.change = at(killed_at, kill)
    with pytest.raises(Killed):
        other.run()
    other.change = lambda step, batch: batch
    assert_same(other.run(), whole)
    assert other.metrics() == toy.metrics()
    assert other.saved() == toy.saved() == [4, 6]


def test_a_terminated_run_saves_says_so_and_goes_on_to_the_same_bits(toy: Toy, other: Toy):
    whole = toy.run()
    other.change = at(4, terminate)  # read while step 3 is at work
    message = "toy was asked to stop after step 3 of 6, and is saved; the same command goes on from there"
    with pytest.raises(Interrupted, match=message) as caught:
        other.run()
    assert caught.value.exit_code == 75
    assert other.saved() == [2, 3]
    other.change = lambda step, batch: batch
    assert_same(other.run(), whole)
    assert other.metrics() == toy.metrics()


@pytest.mark.slow
def test_a_signal_in_the_last_step_does_not_matter(toy: Toy, other: Toy):
    other.evaluated = EvaluateAndTerminate()
    assert_same(other.run(), toy.run())


def test_a_signal_in_the_last_step_of_a_stage_that_is_followed_ends_the_run_behind_it(toy: Toy, other: Toy):
    other.evaluated, other.is_followed = EvaluateAndTerminate(), True
    with pytest.raises(Interrupted, match="toy was asked to stop after step 6 of 6, and is saved"):
        other.run()
    other.evaluated = []
    assert_same(other.run(), toy.run())
    assert other.evaluated == [], "all of it was saved"


class EvaluateAndTerminate(list):
    """Sends a signal when the last step is evaluated."""

    def append(self, step: int) -> None:
        if step == CONFIG.num_steps:
            signal.raise_signal(signal.SIGTERM)


def test_a_second_signal_stops_at_once(toy: Toy):
    def twice(batch: object) -> None:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    toy.change = at(4, twice)
    with pytest.raises(KeyboardInterrupt):
        toy.run()


def test_signals_are_handed_back(toy: Toy):
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    toy.change = at(3, terminate)
    with pytest.raises(Interrupted):
        toy.run()
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == before


def test_nan_stops_at_its_step_says_where_and_keeps_the_checkpoint(toy: Toy):
    toy.change = at(NAN_STEP, spoil)
    message = (
        r"toy diverged at step 4: loss nan, gradient norm nan; the gradient is not finite in 2 of 2 parameters, first "
        r"layer/b\. The checkpoint of step 2 is kept\. Use a lower learning rate, a longer warm-up or a smaller "
        r"max_grad_norm, in another folder \(--run-dir\)"
    )
    with pytest.raises(TrainingDiverged, match=message) as caught:
        toy.run()
    assert caught.value.exit_code == 3
    assert toy.saved() == [2]
    assert [line["step"] for line in toy.metrics()] == [1, 2, 3]


def test_nan_is_noticed_between_two_reports(toy: Toy):
    toy.config = dataclasses.replace(CONFIG, log_every=100, eval_every=100, sample_every=100)
    toy.change = at(NAN_STEP - 1, spoil)
    with pytest.raises(TrainingDiverged, match="toy diverged at step 3"):
        toy.run()


def test_nan_before_the_first_checkpoint(toy: Toy):
    toy.change = at(1, spoil)
    with pytest.raises(TrainingDiverged, match=r"diverged at step 1.*There is no checkpoint yet\."):
        toy.run()
    assert toy.saved() == []


@pytest.mark.parametrize("step", [2, 6])
def test_a_checkpoint_never_holds_nan(toy: Toy, step: int):
    """Also not when the step that spoils the parameters is the one that is saved."""
    toy.change = at(step, spoil)
    with pytest.raises(TrainingDiverged, match=f"diverged at step {step}"):
        toy.run()
    assert toy.saved() == ([] if step == 2 else [2, 4])


def test_a_run_that_diverged_does_so_again_at_the_same_step(toy: Toy):
    toy.change = at(NAN_STEP, spoil)
    for _ in range(2):
        with pytest.raises(TrainingDiverged, match="toy diverged at step 4"):
            toy.run()
    assert toy.saved() == [2]


def test_a_finished_stage_does_nothing(toy: Toy, caplog: pytest.LogCaptureFixture):
    whole = toy.run()
    before = {p: p.stat().st_mtime_ns for p in toy.path.rglob("*")}
    drawn, evaluated = list(toy.drawn), list(toy.evaluated)
    toy.change = at(1, kill)  # no batch is read
    with caplog.at_level(logging.INFO):
        assert_same(toy.run(), whole)
    assert "toy: already trained for 6 steps" in caplog.text
    assert {p: p.stat().st_mtime_ns for p in toy.path.rglob("*")} == before
    assert (toy.drawn, toy.evaluated) == (drawn, evaluated)


def test_everything_happens_in_its_rhythm_and_at_the_end(toy: Toy):
    toy.config = dataclasses.replace(
        CONFIG, num_steps=7, log_every=2, eval_every=3, sample_every=4, checkpoint_every=5, keep_checkpoints=9
    )
    toy.run()
    assert toy.evaluated == [3, 6, 7]
    assert toy.drawn == [4, 7]
    assert toy.saved() == [5, 7]
    steps = {name: [m["step"] for m in toy.metrics() if name in m] for name in ("loss", "heldout_loss")}
    assert steps == {"loss": [2, 4, 6, 7], "heldout_loss": [3, 6, 7]}
    assert (toy.path / "loss.png").is_file()


def scored(toy: Toy, every: int, **config: Any) -> list[int]:
    """Train with scores of 10 - step, nan at step 1; the steps at which they were asked for."""
    asked: list[int] = []

    def score(state: TrainState, step: int) -> dict[str, float]:
        asked.append(step)
        return {"fd": float("nan") if step == 1 else 10.0 - step, "kid": 1.0}

    stage = dataclasses.replace(toy.stage(), scoring=Scoring(every, ("fd", "kid"), score))
    stage = dataclasses.replace(stage, training=dataclasses.replace(CONFIG, **config))
    toy.path.mkdir(exist_ok=True)
    run_stage(stage, RunFolder(toy.path), toy.mesh, ROOT)
    return asked


def test_scores_have_a_rhythm_of_their_own(toy: Toy):
    assert scored(toy, 4, num_steps=7) == [4, 7]
    assert [(m["step"], m["fd"]) for m in toy.metrics() if "fd" in m] == [(4, 6.0), (7, 3.0)]


def test_the_best_checkpoints_may_go_by_a_score(toy: Toy):
    """Which is then measured for every checkpoint; what is no number ranks nothing."""
    best = {"keep_best": 1, "best_metric": "fd", "best_mode": "max", "keep_checkpoints": 1}
    assert scored(toy, 99, num_steps=7, checkpoint_every=2, **best) == [2, 4, 6, 7]
    assert toy.saved() == [2, 7]
    assert RunFolder(toy.path).checkpoints("toy").seal(2).metrics == {"fd": 8.0, "kid": 1.0, "heldout_loss": ANY}


def test_a_score_that_is_no_number_is_left_out(toy: Toy):
    assert scored(toy, 1, num_steps=2) == [1, 2]
    first, second = toy.metrics()
    assert "fd" not in first and first["kid"] == 1.0
    assert second["fd"] == 8.0


def test_the_best_by_what_nobody_measures_is_refused_at_the_start(toy: Toy):
    with pytest.raises(
        UserError, match=r"best_metric='fid' is not measured here, .*; use one of fd, heldout_loss, kid"
    ):
        scored(toy, 2, keep_best=1, best_metric="fid")
    assert toy.saved() == []


def test_a_line_of_metrics_tells_speed_and_waiting(toy: Toy):
    toy.run()
    line = json.loads((toy.path / "metrics.jsonl").read_text().splitlines()[-1])
    assert set(line) == {"stage", "step", "loss", "grad_norm", "heldout_loss", *TIMES}
    assert line["images_per_second"] > 0
    assert line["images_per_second_per_device"] == line["images_per_second"], "on one device"
    assert line["seconds_per_step"] == pytest.approx(8 / line["images_per_second"])
    assert 0 <= line["input_wait"] <= 1


def test_the_start_is_told_in_one_line(toy: Toy, caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.INFO):
        toy.run()
    (line,) = [record.getMessage() for record in caplog.records if "start-up" in record.getMessage()]
    laps = r"build \d+\.\d s, compile \d+\.\d s, first step \d+\.\d s"
    assert re.fullmatch(rf"toy: start-up \d+\.\d s: {laps}; \S+ GFLOP a step", line)


@pytest.mark.slow
def test_compiling_is_no_part_of_the_first_step(toy: Toy, monkeypatch: pytest.MonkeyPatch):
    stage = toy.stage()

    def slow_to_trace(*arguments: Any) -> Any:
        time.sleep(2.0)
        return stage.step(*arguments)

    monkeypatch.setattr(toy, "stage", lambda: dataclasses.replace(stage, step=slow_to_trace))
    toy.run()
    assert toy_line(toy, 1)["seconds_per_step"] < 2.0


def toy_line(toy: Toy, step: int) -> dict[str, Any]:
    return next(line for line in read_metrics(toy.path / "metrics.jsonl") if line["step"] == step)


def test_a_trace_of_some_steps_is_left_and_said_how_to_view(toy: Toy, caplog: pytest.LogCaptureFixture):
    toy.config = dataclasses.replace(CONFIG, profile_steps=(2, 3))
    with caplog.at_level(logging.INFO):
        toy.run()
    folder = toy.path / "profile" / "toy"
    assert [path for path in folder.rglob("*.xplane.pb") if path.stat().st_size > 0]
    told = f"a trace of steps 2 to 3 of this start is in {folder}: open its .trace.json.gz in https://ui.perfetto.dev"
    assert told in caplog.text


@pytest.mark.slow
def test_a_run_that_ends_within_its_trace_still_leaves_one(toy: Toy, caplog: pytest.LogCaptureFixture):
    toy.config = dataclasses.replace(CONFIG, profile_steps=(5, 99))
    with caplog.at_level(logging.INFO):
        toy.run()
    assert "a trace of steps 5 to 6 of this start" in caplog.text
    assert list((toy.path / "profile").rglob("*.xplane.pb"))


def test_a_trace_that_begins_too_late_is_told(toy: Toy, caplog: pytest.LogCaptureFixture):
    toy.config = dataclasses.replace(CONFIG, profile_steps=(8, 9))
    toy.run()
    assert "no trace was written: it begins with step 8, and there were 6" in caplog.text
    assert not (toy.path / "profile").exists()


def test_it_says_from_where_it_goes_on(toy: Toy, caplog: pytest.LogCaptureFixture):
    toy.change = at(6, kill)
    with pytest.raises(Killed):
        toy.run()
    toy.change = lambda step, batch: batch
    with caplog.at_level(logging.INFO):
        toy.run()
    assert re.search(r"toy: going on from the checkpoint of step \d", caplog.text)
    assert "of 6, 0.00 M parameters, batch 8" in caplog.text


def test_a_damaged_newest_checkpoint_costs_only_the_steps_since_the_one_before(toy: Toy, other: Toy):
    whole = toy.run()
    other.run()
    folder = other.path / "checkpoints" / "toy" / "00000006"
    largest = max((p for p in folder.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    largest.write_bytes(largest.read_bytes()[:-1])
    assert_same(other.run(), whole)
    other.change = at(5, kill)  # it is mended: nothing is trained again
    assert_same(other.run(), whole)
    assert other.metrics() == toy.metrics()


def test_if_every_checkpoint_is_damaged_nothing_is_trained_over_them(toy: Toy):
    toy.run()
    for seal in (toy.path / "checkpoints" / "toy").glob("*.json"):
        seal.write_text("{}")
    with pytest.raises(UserError, match=r"every checkpoint in \S* is damaged \(steps \[4, 6\]\)"):
        toy.run()
    assert toy.saved() == [4, 6]


def test_a_batch_that_cannot_be_split_is_refused_with_those_that_can(toy: Toy):
    toy.mesh = sharding.make_mesh(MeshConfig(), jax.devices())
    toy.config = dataclasses.replace(CONFIG, batch_size=12)
    message = (
        r"toy training\.batch_size=12 cannot be split over 8 devices and 1 micro-batches; nearest that can: 8 and 16"
    )
    with pytest.raises(UserError, match=message):
        toy.run()


@pytest.mark.slow
def test_eight_devices_train_as_one(toy: Toy, other: Toy):
    one = toy.run()
    other.mesh = sharding.make_mesh(MeshConfig(), jax.devices())
    eight = other.run()
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=1e-5, atol=1e-6), one, eight
    )


def test_it_goes_on_with_another_number_of_devices(toy: Toy):
    toy.change = at(6, kill)
    with pytest.raises(Killed):
        toy.run()
    toy.change = lambda step, batch: batch
    toy.mesh = sharding.make_mesh(MeshConfig(), jax.devices())
    state = toy.run()
    assert int(state.step) == 6
    assert len(state.params["layer"]["w"].sharding.device_set) == 8


def test_what_is_frozen_is_not_used_up_by_the_step(toy: Toy):
    stage = toy.stage()
    toy.path.mkdir()
    run_stage(stage, RunFolder(toy.path), toy.mesh, ROOT)
    assert float(stage.frozen["scale"]) == pytest.approx(0.1)


def test_a_finite_gradient_may_spoil_the_parameters_and_none_is_saved(toy: Toy):
    stage = toy.stage()

    def step(state: TrainState, batch: Any, root: Any) -> Any:
        new, metrics = stage.step(state, batch, root)
        bad = jnp.where(new.step == 2, jnp.inf, 0.0)
        return new._replace(params={"layer": {**new.params["layer"], "w": new.params["layer"]["w"] + bad}}), metrics

    toy.path.mkdir()
    message = (
        "toy diverged at step 2: what came out is not finite in 1 of 2 parameters, first layer/w. There is no "
        "checkpoint yet."
    )
    with pytest.raises(TrainingDiverged, match=re.escape(message)):
        run_stage(dataclasses.replace(stage, step=step), RunFolder(toy.path), toy.mesh, ROOT)
    assert toy.saved() == []


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_heldout_metric_that_is_not_finite_stops_the_run(toy: Toy, value: float):
    toy.path.mkdir()
    stage = dataclasses.replace(toy.stage(), evaluate=lambda state: {"heldout_loss": value})
    message = f"toy diverged at step 3: heldout_loss {value}. The checkpoint of step 2 is kept."
    with pytest.raises(TrainingDiverged, match=re.escape(message)):
        run_stage(stage, RunFolder(toy.path), toy.mesh, ROOT)
