"""The work of `ldm evaluate --text`: pictures with their prompts, the judges, and the same for real pictures."""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from ldm_jax.config import Experiment
from ldm_jax.data.preparation import default_cache_dir
from ldm_jax.data.source import Source
from ldm_jax.data.sources import load_source
from ldm_jax.errors import UserError
from ldm_jax.evaluation.command import EvaluateCommand, refuse_drawing
from ldm_jax.evaluation.drawing import dealt_captions, drawn_pictures, sampling_of
from ldm_jax.evaluation.features import extract_features, kept_pictures
from ldm_jax.evaluation.network import FeatureNetwork
from ldm_jax.evaluation.pictures import PictureSet, drawn_files, file_pictures, source_pictures
from ldm_jax.evaluation.scores import Score, ScoreOptions
from ldm_jax.evaluation.text_judges import Judge, Vectors, clip_judge, sentence_judge, training_count, word_judge
from ldm_jax.evaluation.text_scores import JudgeName, different, text_scores
from ldm_jax.files.json_files import parse_json
from ldm_jax.interop.model_files import is_run, open_model
from ldm_jax.pictures import read_picture
from ldm_jax.training.run_folder import RunFolder

DEFAULT_SAMPLES = 1000
"""Of a run; the chance level of retrieval depends on the captions, not on the pictures."""


LearnedJudge: TypeAlias = Callable[[FeatureNetwork, Vectors, Source], Judge]
"""From a network, what it sees in the first pictures of a source, and the source."""

MAX_REAL = 5000
"""Real pictures that are judged, at most."""


@dataclass(frozen=True)
class Captioned:
    """Pictures, and the caption of each."""

    pictures: PictureSet
    captions: Sequence[str]


@dataclass(frozen=True)
class TextTarget:
    """What is judged, and the experiment whose data has real pictures with captions, where one is known."""

    samples: Captioned
    experiment: Experiment | None


def open_text_target(command: EvaluateCommand, out: Path) -> TextTarget:
    """Samples of a run for held-out captions, kept in `out`, or pictures of `ldm sample` with their prompts.

    Raises:
        UserError: there is no such thing, or nothing in it has a prompt.
    """
    path = Path(command.target)
    if not path.exists():
        raise UserError(f"{path} does not exist; name a run, or a folder of pictures of `ldm sample`")
    other = None if command.reference is None else RunFolder(Path(command.reference)).load_config()
    if path.is_dir() and not is_run(path) and not (path / "model_index.json").is_file():
        refuse_drawing(command, path)
        return TextTarget(_prompted(path, command.num_samples), other or _experiment_of(path))
    session = open_model(path, ema_sigma_rel=command.ema_sigma_rel)
    count = command.num_samples or DEFAULT_SAMPLES
    config = sampling_of(command, session.experiment.sampling)
    captions = dealt_captions(session, count)
    pictures = drawn_pictures(
        session, config, name=str(path), count=count, seed=command.seed, batch_size=command.batch_size
    )
    kept = kept_pictures(pictures, out / "pictures", command.batch_size)
    return TextTarget(Captioned(kept, captions), other or session.experiment)


def _prompted(folder: Path, count: int | None) -> Captioned:
    files = drawn_files(folder)
    prompts = {name: prompt for name in files if (prompt := _prompt(folder / name)) is not None}
    if len(prompts) < 2:
        raise UserError(
            f"{len(prompts)} pictures in {folder} tell their prompt; name a run, or a folder of `ldm sample RUN "
            "--prompt TEXT`"
        )
    kept = list(prompts)[:count]
    return Captioned(file_pictures(folder, kept), [prompts[name] for name in kept])


def _prompt(file: Path) -> str | None:
    return read_picture(file)[1].get("prompt") if file.suffix.lower() == ".png" else None


def _experiment_of(folder: Path) -> Experiment | None:
    """The experiment of the run that drew pictures, where it is there still."""
    try:
        path = Path(parse_json((folder / "manifest.json").read_text())["model"]["path"])
    except (OSError, ValueError, LookupError, TypeError):
        return None
    return RunFolder(path).load_config() if is_run(path) else None


def judge_text(
    command: EvaluateCommand, networks: Sequence[FeatureNetwork], target: TextTarget, out: Path
) -> tuple[list[Score], list[dict[str, str]]]:
    """The scores of all judges, those of real held-out pictures behind those of the samples, and who the judges are.

    Raises:
        UserError: a judge has no weights or nothing to learn from.
    """
    judges: list[tuple[JudgeName, Judge]] = []
    if "clip" in command.text:
        judges.append(("clip", clip_judge(Path(command.text_weights or ""))))
    learned: dict[JudgeName, LearnedJudge] = {"words": word_judge, "minilm": sentence_judge}
    for name, learn in learned.items():
        if name in command.text:
            judges.extend((name, _learned(command, network, target.experiment, learn)) for network in networks)
    real = None if target.experiment is None else _held_out(target.experiment)
    scores = []
    for name, judge in judges:
        options = ScoreOptions(
            label=judge.label, protocol=judge.protocol, bootstrap=command.bootstrap, seed=command.seed
        )
        pictures = target.samples.pictures
        pooled = extract_features(pictures, judge.network, out / "features", command.batch_size).pooled
        scores += _judged(name, judge, pooled, target.samples.captions, options)
        if real is not None:
            pooled = _known_features(command, judge.network, real.pictures)
            found = _judged(name, judge, pooled, real.captions, options)
            scores += [dataclasses.replace(score, name=f"{score.name}_real") for score in found]
    return scores, [{"name": j.label, "protocol": j.protocol, "fingerprint": j.fingerprint} for _, j in judges]


def _judged(
    name: JudgeName, judge: Judge, pooled: Vectors | None, captions: Sequence[str], options: ScoreOptions
) -> list[Score]:
    assert pooled is not None  # every network has them
    texts, own = different(captions)
    return text_scores(name, judge.similarity(pooled, texts), own, options)


def _learned(
    command: EvaluateCommand, network: FeatureNetwork, experiment: Experiment | None, learn: LearnedJudge
) -> Judge:
    if experiment is None:
        raise UserError(
            f"--text {' '.join(command.text)} learns from captioned pictures, and no run is known whose data has some; "
            "name one with --reference RUN, or use --text clip --text-weights FOLDER"
        )
    source = load_source(experiment.data, "train")
    pictures = dataclasses.replace(source_pictures(source, experiment.data), count=training_count(source))
    return learn(network, _known_features(command, network, pictures), source)


def _known_features(command: EvaluateCommand, network: FeatureNetwork, pictures: PictureSet) -> Vectors:
    pooled = extract_features(pictures, network, default_cache_dir() / "evaluation", command.batch_size).pooled
    assert pooled is not None  # every network has them
    return pooled


def _held_out(experiment: Experiment) -> Captioned | None:
    source = load_source(experiment.data, "test")
    if not source.info.has_captions:
        return None
    count = min(len(source), MAX_REAL)
    captions = [source.annotation(i)["caption"] for i in range(count)]
    return Captioned(dataclasses.replace(source_pictures(source, experiment.data), count=count), captions)
