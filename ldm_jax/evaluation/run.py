"""The work of `ldm evaluate`: open target and reference, look at both with each network, and score."""

import dataclasses
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Shaped

from ldm_jax.config import Experiment
from ldm_jax.data.pictures import SUFFIXES
from ldm_jax.data.preparation import default_cache_dir
from ldm_jax.data.sources import load_source
from ldm_jax.errors import UserError
from ldm_jax.evaluation.command import EvaluateCommand, refuse_drawing
from ldm_jax.evaluation.drawing import drawn_pictures, sampling_of
from ldm_jax.evaluation.features import all_pictures, extract_features, kept_pictures
from ldm_jax.evaluation.likelihood import LikelihoodOptions, likelihoods
from ldm_jax.evaluation.likelihood_report import draw_terms, likelihood_scores, terms_record
from ldm_jax.evaluation.moments import statistics_of
from ldm_jax.evaluation.network import FeatureNetwork, load_network
from ldm_jax.evaluation.npz_files import npz_samples, npz_statistics, read_npz, write_npz, write_statistics
from ldm_jax.evaluation.pictures import PictureSet, folder_pictures, npz_pictures, source_pictures
from ldm_jax.evaluation.reconstruction import Pairs, draw_pairs, lpips_files, pair_scores, reconstructions
from ldm_jax.evaluation.report import as_record, require_same, write_record
from ldm_jax.evaluation.scores import (
    KID_SUBSET,
    FeatureSet,
    Metric,
    Score,
    ScoreOptions,
    compute_scores,
    possible_metrics,
)
from ldm_jax.evaluation.text import judge_text, open_text_target
from ldm_jax.interop.model_files import is_run, open_model
from ldm_jax.manifest import Manifest
from ldm_jax.model import hash_params
from ldm_jax.sampling.session import Session, load_session
from ldm_jax.training.run_folder import RunFolder

logger = logging.getLogger(__name__)

SCORES = "scores.json"
RECONSTRUCTION = "reconstruction.json"
TEXT = "text.json"
PAIRS = "reconstruction.png"
LIKELIHOOD = "likelihood.json"
TERMS = "likelihood.png"

DEFAULT_SAMPLES = 2000
DEFAULT_LIKELIHOODS = 256

Arrays = dict[str, Shaped[np.ndarray, "..."]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Opened:
    """A target or a reference: pictures, or the arrays of statistics."""

    name: str
    pictures: PictureSet | None = None
    arrays: Arrays | None = None
    session: Session | None = None


def evaluate_target(command: EvaluateCommand, expected: Manifest | None = None) -> tuple[list[Score], Manifest]:
    """The scores and their record, which is written when all of them are known.

    Args:
        command: the flags.
        expected: a record of the same flags, of the same pictures and networks as which these must be.

    Raises:
        UserError: bad input; no score is written, and the features that were computed stay for the next time.
    """
    _check_outputs(command)
    needs_none = command.likelihood is not None or command.text == ("clip",)
    networks = [] if needs_none else _networks(command)
    if expected is not None:
        require_same("networks", expected.get("networks"), [_about(network) for network in networks])
    scores, about, name = _kind_of_work(command)(command, networks, expected)
    record = as_record(scores, command, about | {"networks": [_about(network) for network in networks]})
    if jax.process_index() == 0:
        write_record(_out(command) / name, record)
        logger.info("scores are in %s", _out(command) / name)
    return scores, record


def _check_outputs(command: EvaluateCommand) -> None:
    """Find what cannot be written now, and not when everything is computed."""
    if _out(command).exists() and not _out(command).is_dir():
        raise UserError(f"--out {_out(command)} is a file; name a folder")
    for flag, name in (
        ("--export-samples", command.export_samples),
        ("--export-statistics", command.export_statistics),
    ):
        if name is not None and (Path(name).suffix != ".npz" or Path(name).is_dir()):
            raise UserError(f"{flag} {name} must be a file that ends in .npz")
        try:
            Path(name or ".").parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"{flag} {name} cannot be written ({error}); choose another place") from error


def _kind_of_work(command: EvaluateCommand) -> Callable[..., tuple[list[Score], dict[str, Any], str]]:
    if command.likelihood is not None:
        return _likelihood
    if command.text:
        return _text
    return _reconstruction if command.reconstruction else _distribution


def _networks(command: EvaluateCommand) -> list[FeatureNetwork]:
    own = [name for name in command.network if name not in ("alexnet", "efficientnet_lite0")]
    named = command.network if len(command.weights) == len(command.network) else own
    files = {name: Path(path) for name, path in zip(named, command.weights, strict=False)}
    return [load_network(name, files.get(name), command.protocol) for name in command.network]


def _about(network: FeatureNetwork) -> dict[str, str]:
    return {"name": network.label, "protocol": network.protocol, "fingerprint": network.fingerprint}


def _out(command: EvaluateCommand) -> Path:
    if command.out:
        return Path(command.out)
    target = Path(command.target)
    return target / "evaluation" if is_run(target) else Path("evaluation") / target.stem


def _distribution(
    command: EvaluateCommand, networks: Sequence[FeatureNetwork], expected: Manifest | None
) -> tuple[list[Score], dict[str, Any], str]:
    target = _open_target(command)
    reference = _open_reference(command, target)
    about = {"samples": _described(target), "reference": _described(reference)}
    _require_expected(about, expected)
    assert target.pictures is not None  # statistics alone are refused as a target
    if reference.pictures is not None:
        _require_one_shape(target, reference.pictures)
        _require_subsets(command, target.pictures, reference.pictures)
    scores = []
    for network in networks:
        samples, known = _features(command, target, network), _reference_features(command, reference, network)
        if network is networks[0] and command.export_statistics:
            _export_statistics(Path(command.export_statistics), network, known)
        metrics = command.metrics or tuple(possible_metrics(samples, known))
        _require_enough("samples", samples, metrics, network, allowed=command.allow_small)
        _require_enough("reference pictures", known, metrics, network, allowed=command.allow_small)
        options = ScoreOptions(
            label=network.label,
            protocol=network.protocol,
            bootstrap=command.bootstrap,
            seed=command.seed,
            kid_subsets=command.kid_subsets,
        )
        scores += compute_scores(samples, known, metrics, options)
    if command.export_samples:
        _export_samples(command, target.pictures)
    return scores, about, SCORES


def _require_expected(about: dict[str, Any], expected: Manifest | None) -> None:
    if expected is not None:
        for name, found in about.items():
            require_same(f"the {name}", expected.get(name), found)


def _described(opened: _Opened) -> dict[str, Any]:
    if opened.pictures is None:
        arrays = hash_params(opened.arrays or {})
        return {"kind": "statistics", "path": str(Path(opened.name).absolute()), "fingerprint": arrays}
    return {**opened.pictures.about, "fingerprint": opened.pictures.fingerprint, "num_pictures": opened.pictures.count}


def _open_target(command: EvaluateCommand) -> _Opened:
    path = Path(command.target)
    if not path.exists():
        raise UserError(f"{path} does not exist; name a run, a folder of pictures or an .npz")
    is_pictures = path.is_dir() and not any((path / name).is_file() for name in ("config.json", "model_index.json"))
    if is_pictures or path.suffix == ".npz":
        refuse_drawing(command, path)
    if path.suffix == ".npz":
        pictures = npz_samples(path, read_npz(path))
        if pictures is None:
            raise UserError(f"{path} holds statistics alone, which have no samples; give it as --reference")
        return _Opened(name=str(path), pictures=npz_pictures(path, pictures[: command.num_samples]))
    if path.is_file() and path.suffix.lower() in SUFFIXES:
        raise UserError(f"{path} is one picture; name a folder of pictures, an .npz or a run")
    if is_pictures:
        pictures = folder_pictures(path, command.image_size)
        return _Opened(name=str(path), pictures=_first(pictures, command.num_samples))
    session = open_model(path, ema_sigma_rel=command.ema_sigma_rel)
    pictures = drawn_pictures(
        session,
        sampling_of(command, session.experiment.sampling),
        name=str(path),
        count=command.num_samples or DEFAULT_SAMPLES,
        seed=command.seed,
        batch_size=command.batch_size,
    )
    return _Opened(name=str(path), pictures=_kept(command, pictures), session=session)


def _kept(command: EvaluateCommand, pictures: PictureSet) -> PictureSet:
    return kept_pictures(pictures, _out(command) / "pictures", command.batch_size)


def _first(pictures: PictureSet, count: int | None) -> PictureSet:
    if count is None or pictures.count <= count:
        return pictures
    logger.info("of the %d pictures of %s the first %d are taken", pictures.count, pictures.name, count)
    return dataclasses.replace(pictures, count=count)


def _open_reference(command: EvaluateCommand, target: _Opened) -> _Opened:
    if command.reference is None:
        if target.session is None:
            raise UserError(
                f"{target.name} brings no data to compare with; give a folder, an .npz or a run with --reference PATH"
            )
        return _data_of(target.session.experiment, command)
    path = Path(command.reference)
    if not path.exists():
        raise UserError(f"the reference {path} does not exist; name a folder of pictures, an .npz or a run")
    if path.suffix == ".npz":
        arrays = read_npz(path)
        pictures = npz_samples(path, arrays)
        # ADM's references carry both: its published scores are of the statistics, which are of more pictures
        if pictures is None or "mu" in arrays:
            return _Opened(name=str(path), arrays=arrays)
        return _Opened(name=str(path), pictures=npz_pictures(path, pictures))
    if (path / "config.json").is_file():
        return _data_of(RunFolder(path).load_config(), command)
    return _Opened(name=str(path), pictures=folder_pictures(path, command.image_size))


def _data_of(experiment: Experiment, command: EvaluateCommand) -> _Opened:
    pictures = source_pictures(load_source(experiment.data, command.split), experiment.data)
    return _Opened(name=pictures.name, pictures=pictures)


def _require_one_shape(target: _Opened, second: PictureSet) -> None:
    """Networks resize what they see, but pictures of another size have other details. Nothing is drawn to find out."""
    first, session = target.pictures, target.session
    assert first is not None  # statistics alone are refused as a target
    a = first.read(0, 1).shape[1:] if session is None else session.model.image_shape
    b = second.read(0, 1).shape[1:]
    if a[2] != b[2]:
        grey, colour = (first, second) if a[2] == 1 else (second, first)
        logger.warning("%s is grey and %s is not: its colours are part of the distance", grey.name, colour.name)
    if a[:2] != b[:2]:
        raise UserError(
            f"the pictures of {first.name} have {a[1]}x{a[0]} pixels and those of {second.name} have {b[1]}x{b[0]}; "
            "compare pictures of one size, or resize and crop those of folders with --image-size N"
        )


def _require_subsets(command: EvaluateCommand, *sets: PictureSet) -> None:
    """Refuse subsets of more pictures than there are, before anything is drawn."""
    few = [f"{pictures.count} of {pictures.name}" for pictures in sets if pictures.count < KID_SUBSET]
    if command.kid_subsets and few:
        raise UserError(
            f"--kid-subsets={command.kid_subsets} takes subsets of {KID_SUBSET} pictures, and there are "
            f"{' and '.join(few)}; give more, or leave it out: KID is then over all pairs"
        )


def _features(command: EvaluateCommand, opened: _Opened, network: FeatureNetwork) -> FeatureSet:
    assert opened.pictures is not None
    return extract_features(opened.pictures, network, _out(command) / "features", command.batch_size)


def _reference_features(command: EvaluateCommand, opened: _Opened, network: FeatureNetwork) -> FeatureSet:
    """Those of a reference are kept in the user's cache, for every run that is compared with it."""
    if opened.pictures is None:
        return npz_statistics(Path(opened.name), opened.arrays or {}, network.label)
    return extract_features(opened.pictures, network, default_cache_dir() / "evaluation", command.batch_size)


def _require_enough(
    what: str, given: FeatureSet, metrics: Sequence[Metric], network: FeatureNetwork, *, allowed: bool
) -> None:
    """Refuse Frechet distances of covariances that have no full rank, or warn of them; statistics are taken as given.

    `what` they are: `samples`, or `reference pictures`.
    """
    for metric, features in (("fd", given.pooled), ("sfd", given.spatial)):
        if metric in metrics and features is not None and len(features) <= features.shape[1]:
            _refuse_few(what, metric, features.shape, network, allowed=allowed)


def _refuse_few(what: str, metric: str, shape: tuple[int, ...], network: FeatureNetwork, *, allowed: bool) -> None:
    message = (
        f"{shape[0]} {what} are no more than the {shape[1]} features of {network.label}: a Frechet distance of so few "
        "is mostly bias"
    )
    more = "--num-samples" if what == "samples" else "--reference, or --split train"
    if not allowed:
        raise UserError(
            f"{message}; give more with {more}, leave {metric} out with --metrics kid pr dc, or take it with "
            "--allow-small"
        )
    logger.warning("%s; compare it with nothing but the same number of %s", message, what)


def _export_statistics(file: Path, network: FeatureNetwork, known: FeatureSet) -> None:
    if known.pooled is None:
        raise UserError(f"the reference holds statistics already; --export-statistics {file} would copy them")
    spatial = None if known.spatial is None else statistics_of(known.spatial)
    if jax.process_index() == 0:
        write_statistics(file, network.label, statistics_of(known.pooled), spatial)
        logger.info("statistics of %d pictures over %s are in %s", len(known.pooled), network.label, file)


def _export_samples(command: EvaluateCommand, pictures: PictureSet) -> None:
    file = Path(command.export_samples or "")
    arrays = all_pictures(pictures, _out(command) / "pictures", command.batch_size)
    if jax.process_index() == 0:
        write_npz(file, arrays)
        logger.info("%d samples are in %s", pictures.count, file)


def _reconstruction(
    command: EvaluateCommand, networks: Sequence[FeatureNetwork], expected: Manifest | None
) -> tuple[list[Score], dict[str, Any], str]:
    session = _open_first_stage(Path(command.target)).in_strips(command.strip_rows)
    data = session.experiment.data
    weights = lpips_files(command.lpips_files, session.experiment.first_stage.perceptual)
    pictures = _first(source_pictures(load_source(data, "test"), data), command.num_samples)
    made = reconstructions(session, pictures, command.batch_size)
    pairs, out = Pairs(pictures, _kept(command, made)), _out(command)
    about = {"pictures": {**pairs.reconstructions.about, "num_pictures": pictures.count}}
    _require_expected(about, expected)
    scores = pair_scores(
        pairs, weights, out / "pairs", command.batch_size, bootstrap=command.bootstrap, seed=command.seed
    )
    for network in networks:
        known = extract_features(pairs.originals, network, default_cache_dir() / "evaluation", command.batch_size)
        samples = extract_features(pairs.reconstructions, network, out / "features", command.batch_size)
        # both sets are the same pictures: their bias is much the same
        _require_enough("samples", samples, ["fd"], network, allowed=True)
        options = ScoreOptions(
            label=network.label, protocol=network.protocol, bootstrap=command.bootstrap, seed=command.seed
        )
        (distance,) = compute_scores(samples, known, ["fd"], options)
        scores.append(dataclasses.replace(distance, name=f"r{distance.name}"))
    if jax.process_index() == 0:
        out.mkdir(parents=True, exist_ok=True)
        draw_pairs(pairs, out / PAIRS, session.credit, command.batch_size)
    return scores, about, RECONSTRUCTION


def _text(
    command: EvaluateCommand, networks: Sequence[FeatureNetwork], expected: Manifest | None
) -> tuple[list[Score], dict[str, Any], str]:
    target = open_text_target(command, _out(command))
    about: dict[str, Any] = {"samples": _described(_Opened(name="samples", pictures=target.samples.pictures))}
    _require_expected(about, expected)
    scores, judges = judge_text(command, networks, target, _out(command))
    if expected is not None:
        require_same("the judges", expected.get("judges"), judges)
    return scores, about | {"judges": judges}, TEXT


def _likelihood(
    command: EvaluateCommand, networks: Sequence[FeatureNetwork], expected: Manifest | None
) -> tuple[list[Score], dict[str, Any], str]:
    del networks  # nothing is looked at
    assert command.likelihood is not None  # which is why this is called
    path, out = Path(command.target), _out(command)
    if not path.exists():
        raise UserError(f"{path} does not exist; name a run")
    session = open_model(path, ema_sigma_rel=command.ema_sigma_rel)
    options = LikelihoodOptions(command.likelihood, command.flow_steps, command.flow_probes, command.seed)
    count = command.num_samples or DEFAULT_LIKELIHOODS
    found = likelihoods(session, options, count=count, batch_size=command.batch_size, cache=out / "likelihood")
    if jax.process_index() == 0 and "kl" in found.latent:
        out.mkdir(parents=True, exist_ok=True)
        draw_terms(found, out / TERMS, session.experiment.name)
    pictures = {**found.pictures.about, "num_pictures": found.pictures.count, "weights_sha256": found.weights}
    _require_expected({"pictures": pictures}, expected)
    about = {"pictures": pictures, "likelihood": {**options._asdict(), **terms_record(found)}}
    return likelihood_scores(found, options, command.bootstrap), about, LIKELIHOOD


def _open_first_stage(path: Path) -> Session:
    """The newest model with an autoencoder: of the second stage, or of the first where there is no second yet."""
    if not path.exists():
        raise UserError(f"{path} does not exist; name a run")
    if is_run(path) and not RunFolder(path).checkpoints("diffusion").steps():
        return load_session(path, "autoencoder")
    return open_model(path)
