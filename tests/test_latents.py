"""Latents for the second stage: their statistics, and that a cache changes nothing but the speed."""

import dataclasses
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from data_fakes import PictureSource
from tiny import TEXT, one_device_mesh, random_params, shrink, tiny_experiment

from ldm_jax import rng
from ldm_jax.conditioning.tokenizer import PromptEncoder, train_tokenizer
from ldm_jax.config import ClipTextConditioning, SdxlConditioning, load_experiment
from ldm_jax.data.given.shelf import GivenShelf
from ldm_jax.data.latent_manifest import recipe_differences
from ldm_jax.data.latent_source import LatentSource, load_latents, open_latents
from ldm_jax.data.latent_statistics import LatentSums
from ldm_jax.data.selection import Selection
from ldm_jax.data.source import training_texts
from ldm_jax.data.sources import load_source
from ldm_jax.errors import UserError
from ldm_jax.model import Params, hash_params, make_model
from ldm_jax.training import latents, processes, workspace
from ldm_jax.training.diffusion_step import make_diffusion_loss
from ldm_jax.training.latent_factory import (
    LatentFactory,
    fill_batches,
    make_factory,
    one_ahead,
    require_embeddable,
    share_of_process,
)
from ldm_jax.training.latents import LatentReader, latent_statistics
from ldm_jax.training.run_folder import RunFolder
from ldm_jax.training.watchdog import Limits, Watch
from ldm_jax.training.workspace import Workspace, open_workspace


def moments_of(mean: np.ndarray, std: np.ndarray) -> np.ndarray:
    return np.concatenate([mean, 2 * np.log(std)], axis=-1).astype(np.float32)


def random_moments(size: int = 40) -> np.ndarray:
    numbers = np.random.default_rng(0)
    mean = numbers.normal(size=(size, 4, 4, 2)) * [1.0, 3.0] + [2.0, -1.0]
    return moments_of(mean, numbers.uniform(0.1, 1.0, (size, 4, 4, 2)))


def test_the_statistics_are_those_of_drawn_samples():
    moments = random_moments()
    mean, logvar = np.split(moments.astype(np.float64), 2, axis=-1)
    noise = np.random.default_rng(1).normal(size=(200, *mean.shape))
    drawn = mean + np.exp(0.5 * logvar) * noise
    each = latent_statistics(LatentSums.of(moments), "per_channel")["latent"]
    np.testing.assert_allclose(each["mean"], drawn.mean(axis=(0, 1, 2, 3)), atol=0.01)
    np.testing.assert_allclose(each["std"], drawn.std(axis=(0, 1, 2, 3)), rtol=0.01)
    one = latent_statistics(LatentSums.of(moments), "global")["latent"]
    np.testing.assert_array_equal(one["mean"], [0, 0])
    np.testing.assert_allclose(one["std"], [drawn.std()] * 2, rtol=0.01)
    assert {a.dtype for a in (*each.values(), *one.values())} == {np.dtype(np.float32)}


def test_mirror_images_count_as_pictures_of_their_own():
    flips = random_moments().reshape(20, 2, 4, 4, 4)
    one, other = (latent_statistics(LatentSums.of(m), "global")["latent"] for m in (flips, flips.reshape(40, 4, 4, 4)))
    np.testing.assert_array_equal(one["std"], other["std"])


def test_a_posterior_without_spread_is_a_point():
    mean = np.random.default_rng(0).normal(size=(30, 4, 4, 2))
    moments = np.concatenate([mean, np.full_like(mean, -np.inf)], axis=-1).astype(np.float32)
    found = latent_statistics(LatentSums.of(moments), "per_channel")["latent"]
    np.testing.assert_allclose(found["std"], mean.std(axis=(0, 1, 2)), rtol=1e-5)


def constant(channel: np.ndarray) -> None:
    channel[...] = 0.25


def broken(channel: np.ndarray) -> None:
    channel[0, 0, 0] = np.nan


@pytest.mark.parametrize("scale", ["global", "per_channel"])
@pytest.mark.parametrize("spoil", [constant, broken])
def test_a_collapsed_first_stage_is_noticed(spoil: Callable[[np.ndarray], None], scale):
    mean = np.random.default_rng(0).normal(size=(8, 4, 4, 2))
    for channel in (0, 1) if scale == "global" else (1,):
        spoil(mean[..., channel])
    message = r"the latents have spread \[.*\]: the first stage has collapsed; train it longer or otherwise"
    with pytest.raises(UserError, match=message):
        latent_statistics(LatentSums.of(moments_of(mean, np.full_like(mean, 1e-9))), scale)


def test_a_fingerprint_tells_values_shapes_types_and_names():
    base = {"a": {"w": np.arange(4, dtype=np.float32)}}
    others = [
        {"a": {"w": np.asarray([0, 1, 2, 4], np.float32)}},
        {"a": {"w": np.arange(4, dtype=np.float32).reshape(2, 2)}},
        {"a": {"w": np.arange(4, dtype=np.float32).view(np.int32)}},
        {"b": {"w": np.arange(4, dtype=np.float32)}},
    ]
    assert hash_params(base) == hash_params({"a": {"w": jnp.arange(4.0)}})
    assert len({hash_params(tree) for tree in (base, *others)}) == 5


@pytest.fixture(scope="module")
def cached(data_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """A workspace that caches latents, of mirror images, too."""
    tiny = tiny_experiment(data_cache)
    experiment = dataclasses.replace(tiny, data=dataclasses.replace(tiny.data, horizontal_flip=True))
    work = open_workspace(experiment, tmp_path_factory.mktemp("runs") / "run")
    mesh = one_device_mesh()
    return dataclasses.replace(work, mesh=mesh, model=make_model(work.experiment, mesh))


@pytest.fixture(scope="module")
def uncached(cached: Workspace) -> Workspace:
    """The same without a cache."""
    data = dataclasses.replace(cached.experiment.data, cache_latents=False)
    return dataclasses.replace(cached, experiment=dataclasses.replace(cached.experiment, data=data))


@pytest.fixture(scope="module")
def autoencoder(cached: Workspace) -> Params:
    return {"autoencoder": random_params(cached.model)["autoencoder"]}


@pytest.fixture(scope="module")
def readers(cached: Workspace, uncached: Workspace, autoencoder: Params) -> tuple[LatentReader, LatentReader]:
    return LatentReader(cached, autoencoder), LatentReader(uncached, autoencoder)


def first(batches: Iterator[Any], count: int) -> list[Any]:
    return [next(batches) for _ in range(count)]


def test_statistics_are_the_same_with_and_without_a_cache(readers: tuple[LatentReader, LatentReader]):
    one, other = (reader.statistics()["latent"] for reader in readers)
    np.testing.assert_allclose(one["mean"], other["mean"], rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(one["std"], other["std"], rtol=1e-4)


def test_training_batches_are_the_same_with_and_without_a_cache(readers: tuple[LatentReader, LatentReader]):
    for one, other in zip(*(first(reader.train_batches(2), 2) for reader in readers), strict=True):
        assert set(one) == set(other) - {"image"}
        np.testing.assert_allclose(one["moments"], other["moments"], rtol=1e-4, atol=1e-5)
        for name in set(one) - {"moments"}:
            np.testing.assert_array_equal(one[name], other[name])


def test_training_batches_of_a_step_do_not_depend_on_where_reading_began(readers: tuple[LatentReader, LatentReader]):
    late, early = first(readers[0].train_batches(3), 1)[0], first(readers[0].train_batches(0), 4)[3]
    jax.tree.map(np.testing.assert_array_equal, late, early)


def test_heldout_batches_are_the_same_with_and_without_a_cache(
    cached: Workspace, readers: tuple[LatentReader, LatentReader]
):
    ones, others = (list(reader.heldout_batches(8)) for reader in readers)
    assert sum(int(np.sum(batch["valid"])) for batch in ones) == len(cached.test)
    for one, other in zip(ones, others, strict=True):
        np.testing.assert_allclose(one["moments"], other["moments"], rtol=1e-4, atol=1e-5)
        np.testing.assert_array_equal(one["valid"], other["valid"])


def test_a_cache_is_made_once_and_again_for_another_autoencoder(
    cached: Workspace, autoencoder: Params, caplog: pytest.LogCaptureFixture, readers: object
):
    with caplog.at_level(logging.INFO):
        LatentReader(cached, autoencoder)
    assert "encoding" not in caplog.text
    other = jax.tree.map(lambda x: x + 0.01, autoencoder)
    with caplog.at_level(logging.INFO):
        LatentReader(cached, other)
    assert caplog.text.count("encoding") == 2
    LatentReader(cached, autoencoder)  # for the tests that come after


def test_a_large_set_is_measured_by_its_first_pictures(
    uncached: Workspace, autoencoder: Params, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    monkeypatch.setattr(latents, "STATISTICS_PICTURES", 9)
    positions = int(np.prod(uncached.model.latent_shape[:-1]))
    with caplog.at_level(logging.INFO):
        LatentReader(uncached, autoencoder).statistics()
    assert f"latents of {2 * 16 * positions} positions" in caplog.text  # two batches of 8, with mirror images


# --- latents that `ldm latents encode` has written: a cache is such a set --------------------------------------------


@pytest.fixture(scope="module")
def given(cached: Workspace, readers: object) -> Workspace:
    """The workspace with the latents of the first instead of pictures."""
    experiment = cached.experiment
    first = dataclasses.replace(experiment.first_stage, run="runs/first")
    data = dataclasses.replace(experiment.data, latents=str(cached.run.latents), cache_dir="/nowhere")
    experiment = dataclasses.replace(experiment, data=data, first_stage=first)
    train, test = (load_latents(data, split) for split in ("train", "test"))
    return dataclasses.replace(cached, experiment=experiment, train=train, test=test)


def test_given_latents_are_those_of_the_run_itself(
    given: Workspace, autoencoder: Params, readers: tuple[LatentReader, LatentReader]
):
    reader = LatentReader(given, autoencoder)
    jax.tree.map(np.testing.assert_array_equal, reader.statistics(), readers[0].statistics())
    for one, other in zip(*(first(r.train_batches(2), 2) for r in (reader, readers[0])), strict=True):
        jax.tree.map(np.testing.assert_array_equal, one, other)
    for one, other in zip(*(r.heldout_batches(8) for r in (reader, readers[0])), strict=True):
        jax.tree.map(np.testing.assert_array_equal, one, other)


def test_latents_of_another_autoencoder_are_refused(given: Workspace, autoencoder: Params):
    other = jax.tree.map(lambda x: x + 0.01, autoencoder)
    message = (
        r"the latents in \S+train do not fit this experiment:\n  autoencoder: '[0-9a-f]{64}' -> '[0-9a-f]{64}'\nencode "
        "them for it with `ldm latents encode`, or change the experiment"
    )
    with pytest.raises(UserError, match=message):
        LatentReader(given, other)


def test_latents_of_an_autoencoder_that_does_something_else_with_its_parameters_are_refused(
    given: Workspace, autoencoder: Params
):
    first = given.experiment.first_stage
    other = dataclasses.replace(first, autoencoder=dataclasses.replace(first.autoencoder, num_groups=2))
    experiment = dataclasses.replace(given.experiment, first_stage=other)
    with pytest.raises(UserError, match=r"do not fit .*:\n  first_stage.autoencoder.num_groups: \d+ -> 2\nencode"):
        LatentReader(dataclasses.replace(given, experiment=experiment), autoencoder)


def test_latents_computed_in_another_type_fit_and_it_is_said(
    given: Workspace, autoencoder: Params, caplog: pytest.LogCaptureFixture
):
    experiment = dataclasses.replace(given.experiment, compute_dtype="bfloat16")
    with caplog.at_level(logging.INFO):
        LatentReader(dataclasses.replace(given, experiment=experiment), autoencoder)
    assert "train were computed in float32" in caplog.text


@pytest.mark.parametrize("own_disk", [False, True])
def test_the_watch_counts_the_same_tasks_whatever_the_share(own_disk: bool, monkeypatch: pytest.MonkeyPatch):
    watch = Watch(0, 2, Limits(60.0, 1800.0, 14400.0))
    monkeypatch.setattr(processes, "_watch", watch)
    share, counts = share_of_process(own_disk=own_disk), []
    for work in (0, 3):
        share.meet("encoding")
        assert (watch.task, watch.patience) == ("encoding", "busy")
        for _ in range(work):
            share.advance()
        counts.append(watch.count)
    assert watch.advances == 3
    assert counts == ([1, 2] if own_disk else [2, 4])


def test_a_workspace_opens_latents_instead_of_pictures(
    given: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(workspace, "load_source", None)
    work = open_workspace(given.experiment, tmp_path / "run")
    assert (work.train.info, len(work.test)) == (given.train.info, len(given.test))
    assert work.encode_caption is not None, "the tokenizer is trained on the captions beside the latents"


def test_a_damaged_cache_is_mended(
    cached: Workspace, autoencoder: Params, caplog: pytest.LogCaptureFixture, readers: object
):
    shard = cached.run.latents / "train" / "00000.array_record"
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-1])
    with caplog.at_level(logging.INFO):
        LatentReader(cached, autoencoder)
    assert shard.read_bytes() == whole
    assert "00000.array_record has" in caplog.text and caplog.text.count("encoding") == 1


# --- what else a set can hold ----------------------------------------------------------------------------------------

CLIP = ClipTextConditioning(
    **{"vocab_size": 300, "context_length": 8, "context_dim": 8, "num_layers": 1, "num_heads": 2},
    **{"begin_token": 1, "end_token": 2, "pad_token": 0, "trainable": False},
)


SDXL = SdxlConditioning(first=CLIP, second=dataclasses.replace(CLIP, context_dim=4, projection_dim=6), size_dim=2)


@pytest.fixture(scope="module", params=[CLIP, SDXL], ids=["clip", "sdxl"])
def clip(request: pytest.FixtureRequest, data_cache: Path) -> tuple[Workspace, Params]:
    """A workspace whose captions are embedded by text encoders that are not trained, and random parameters."""
    tiny = tiny_experiment(data_cache)
    denoiser = dataclasses.replace(tiny.denoiser, vector_dim=getattr(request.param, "vector_dim", None))
    experiment = dataclasses.replace(tiny, conditioning=request.param, denoiser=denoiser)
    source, mesh = load_source(tiny.data, "train"), one_device_mesh()
    names = ["tokens", "tokens_2"] if request.param is SDXL else ["tokens"]
    encoder = PromptEncoder(dict.fromkeys(names, train_tokenizer(training_texts(source), 300, 8)))
    model = make_model(experiment, mesh)
    run = RunFolder(data_cache / "run")
    work = Workspace(experiment, run, mesh, model, source, source, encoder, rng.root_key(0), GivenShelf(experiment))
    return work, random_params(model)


def clip_latents(work: Workspace, params: Params, folder: Path) -> LatentSource:
    options = {"encode_caption": work.encode_caption, "with_sizes": True, "shard_size": 8}
    factory = make_factory(work.experiment, work.mesh, params, batch_size=8, **options)
    factory.write(work.train, folder / "train", share_of_process())
    return open_latents(folder / "train")


@pytest.fixture(scope="module")
def clip_given(clip: tuple[Workspace, Params], tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """The same with latents."""
    work, params = clip
    latents = clip_latents(work, params, tmp_path_factory.mktemp("latents"))
    data = dataclasses.replace(work.experiment.data, latents=str(latents.folder.parent))
    experiment = dataclasses.replace(work.experiment, data=data, start="model")
    return dataclasses.replace(work, experiment=experiment, train=latents, test=latents)


def test_embedded_captions_train_as_captions_do(clip: tuple[Workspace, Params], clip_given: Workspace):
    work, params = clip
    trained, frozen = {"denoiser": params["denoiser"]}, {k: v for k, v in params.items() if k != "denoiser"}
    data = dataclasses.replace(work.experiment.data, cache_latents=False)
    work = dataclasses.replace(work, experiment=dataclasses.replace(work.experiment, data=data))
    config = dataclasses.replace(work.experiment.diffusion, cond_drop_prob=0.5)
    loss = jax.jit(make_diffusion_loss(work.model, config))
    losses = []
    for reader in (LatentReader(work, params), LatentReader(clip_given, params)):
        batch = dict(next(reader.train_batches(0)))
        assert ("tokens" in batch) == (reader.work is work)
        losses.append(loss(trained, frozen, {k: batch[k] for k in batch if k != "image"}, work.root, jnp.asarray(0))[0])
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-4)


def test_only_a_denoiser_that_is_told_sizes_has_them_in_its_batches(clip: tuple[Workspace, Params]):
    work, _ = clip
    told = work.experiment.conditioning == SDXL
    for purpose, config in (("diffusion", work.experiment.training), ("autoencoder", work.experiment.training)):
        batch = next(work.train_batches(work.train, config, purpose, 0))
        assert ("sizes" in batch) == (told and purpose == "diffusion")
    assert ("sizes" in next(work.epoch(work.test, 8, for_denoiser=True))) == told


def test_sizes_are_beside_the_latents(clip_given: Workspace):
    (sizes,) = clip_given.train[0]["sizes"].tolist()
    assert sizes == [sizes[0], sizes[0], 0, 0, 8, 8]
    arrays = clip_given.train.manifest.layout.arrays if isinstance(clip_given.train, LatentSource) else {}
    sdxl = clip_given.experiment.conditioning == SDXL
    assert clip_given.train[0]["context"].shape == arrays["context"].shape == (8, 12 if sdxl else 8)
    assert arrays["pooled"].shape == (6,) if sdxl else "pooled" not in arrays


def test_squares_cut_at_random_have_to_tell_a_denoiser_where(clip: tuple[Workspace, Params], clip_given: Workspace):
    if clip_given.experiment.conditioning != SDXL:
        return
    assert isinstance(clip_given.train, LatentSource)
    manifest = clip_given.train.manifest
    data = dataclasses.replace(manifest.recipe.data, crop="random")
    recipe = dataclasses.replace(manifest.recipe, data=data, has_sizes=False)
    latents = dataclasses.replace(clip_given.train, manifest=dataclasses.replace(manifest, recipe=recipe))
    with pytest.raises(UserError, match="do not fit this experiment:\n  has_sizes: False -> True"):
        LatentReader(dataclasses.replace(clip_given, train=latents, test=latents), clip[1])


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class AsTheyAre(LatentFactory):
    """A factory that stores pictures in place of latents."""

    def _on_devices(self, batch: Any) -> dict[str, Any]:
        image = batch["image"]
        return {"moments": np.stack([image, image[:, :, ::-1]][: self._flips], axis=1)}


def cutting_factory(work: Workspace, seed: int = 0) -> LatentFactory:
    data = dataclasses.replace(work.experiment.data, resize=(10, 16), crop="random", horizontal_flip=True)
    experiment = dataclasses.replace(work.experiment, data=data, seed=seed)
    options: dict[str, Any] = {"with_sizes": True, "batch_size": 4, "params": {}}
    return AsTheyAre(experiment=experiment, mesh=work.mesh, model=work.model, **options)


def stored(factory: LatentFactory, indices: list[int], split: str = "train") -> dict[int, dict[str, Any]]:
    """What a factory stores of oblong pictures."""
    source = PictureSource(8, shape=(16, 32, 3))
    source = dataclasses.replace(source, info=dataclasses.replace(source.info, split=split))
    encoded, found = factory._encoded(Selection(source, indices)), {}
    for batch, arrays in encoded:
        rows = np.flatnonzero(batch["valid"]).tolist()
        found |= {indices[batch["sample_index"][row]]: {k: v[row] for k, v in arrays.items()} for row in rows}
    return found


def test_a_factory_cuts_each_picture_once_wherever_it_goes_on(cached: Workspace):
    """The square depends on seed and index alone, not on which pictures are left to do; both mirrorings are of it."""
    factory = cutting_factory(cached)
    whole, rest = stored(factory, list(range(8))), stored(factory, [6, 1, 3])
    for index, one in rest.items():
        for name, value in one.items():
            np.testing.assert_array_equal(value, whole[index][name])
    assert len({one["sizes"].tobytes() for one in whole.values()}) > 4
    for one in whole.values():
        assert one["moments"].shape == (2, 8, 8, 3) and one["sizes"].shape == (2, 6)
        np.testing.assert_array_equal(one["moments"][0], one["moments"][1][:, ::-1])
        assert one["sizes"][:, :2].tolist() == [[16, 32]] * 2
    other = stored(cutting_factory(cached, seed=1), list(range(8)))
    assert any((other[i]["sizes"] != whole[i]["sizes"]).any() for i in range(8))


def test_a_factory_cuts_held_out_pictures_in_the_centre(cached: Workspace):
    sizes = [one["sizes"][0].tolist() for one in stored(cutting_factory(cached), [0, 1, 2], "test").values()]
    assert sizes == [[16, 32, 1, 6, 8, 8]] * 3, "of a picture of 10 x 20 pixels"


def test_the_recipe_of_random_squares_has_their_seed(cached: Workspace, monkeypatch: pytest.MonkeyPatch):
    networks = {"autoencoder": "a", "autoencoder_config": cached.experiment.first_stage.autoencoder}
    monkeypatch.setattr(LatentFactory, "_networks", networks)
    source = PictureSource(8)
    one, other = (cutting_factory(cached, seed).recipe(source) for seed in (0, 1))
    assert recipe_differences(one, other) == ["crop_seed: 0 -> 1"]
    assert "a square anywhere (held out: in the centre)" in one.transform
    test = dataclasses.replace(source, info=dataclasses.replace(source.info, split="test"))
    assert cutting_factory(cached).recipe(test).crop_seed is None


def test_captions_embedded_by_another_encoder_are_refused(clip: tuple[Workspace, Params], clip_given: Workspace):
    other = {**clip[1], "conditioner": jax.tree.map(lambda x: x + 0.01, clip[1]["conditioner"])}
    with pytest.raises(UserError, match=r"do not fit this experiment:\n  texts: '[0-9a-f]{64}' -> '[0-9a-f]{64}'\n"):
        LatentReader(clip_given, other)


def test_captions_embedded_by_another_layer_are_refused(clip: tuple[Workspace, Params], clip_given: Workspace):
    experiment, change = clip_given.experiment, {"context_layer": "penultimate"}
    config, where = experiment.conditioning, "conditioning"
    if isinstance(config, SdxlConditioning):
        change, where = {"second": dataclasses.replace(config.second, **change)}, "conditioning.second"
    other = dataclasses.replace(experiment, conditioning=dataclasses.replace(config, **change))
    message = rf"do not fit this experiment:\n  {where}.context_layer: 'last' -> 'penultimate'\n"
    with pytest.raises(UserError, match=message):
        LatentReader(dataclasses.replace(clip_given, experiment=other), clip[1])


def test_a_text_encoder_that_is_trained_sees_captions(clip: tuple[Workspace, Params], clip_given: Workspace):
    experiment = clip_given.experiment
    trained = dataclasses.replace(experiment, conditioning=dataclasses.replace(experiment.conditioning, trainable=True))
    batch = next(LatentReader(dataclasses.replace(clip_given, experiment=trained), clip[1]).train_batches(0))
    assert "tokens" in batch and not {"context", "pooled"} & set(batch)


@pytest.mark.parametrize(
    ("conditioning", "max_tags", "message"),
    [
        (
            TEXT,
            0,
            r"a text encoder of CLIP or by SDXL's two; conditioning=TextConditioning is neither",
        ),
        (dataclasses.replace(CLIP, trainable=True), 0, r"stays as it is: use --conditioning.no-trainable"),
        (CLIP, 3, r"training on shapes puts other keywords behind it each time; leave them out with"),
    ],
)
def test_captions_that_change_are_not_embedded(data_cache: Path, conditioning: Any, max_tags: int, message: str):
    experiment = dataclasses.replace(tiny_experiment(data_cache), conditioning=conditioning)
    info = dataclasses.replace(PictureSource(1).info, name="shapes", max_tags=max_tags)
    with pytest.raises(UserError, match=message):
        require_embeddable(experiment, PictureSource(1, info=info))


def test_latents_before_the_lookup_are_stored_without_their_log_variances(data_cache: Path, tmp_path: Path):
    experiment = shrink(load_experiment("zoo/vq-f8"), data_cache)
    mesh = one_device_mesh()
    params = random_params(make_model(experiment, mesh))
    source = load_source(experiment.data, "train")
    factory = make_factory(experiment, mesh, params, batch_size=8)
    factory.write(source, tmp_path / "train", share_of_process())
    latents = open_latents(tmp_path / "train")
    assert latents.manifest.layout.is_point
    stored, channels = (
        latents.manifest.layout.arrays["moments"].shape[-1],
        experiment.first_stage.autoencoder.latent_channels,
    )
    assert stored == channels and latents[0]["moments"].shape[-1] == 2 * channels
    assert np.isneginf(latents[0]["moments"][..., channels:]).all()
    mean, std = latents.manifest.sums.per_channel()
    means = np.stack([latents[i]["moments"][..., :channels] for i in range(len(source))]).reshape(-1, channels)
    np.testing.assert_allclose(mean, means.mean(axis=0), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(std, means.std(axis=0), rtol=1e-4)


def test_no_batch_has_pictures_of_two_shards():
    filled, counts = fill_batches([*range(5, 10), *range(15, 18)], 5, 2)
    assert filled == [5, 6, 7, 8, 9, 9, 15, 16, 17, 17]
    assert [index for index, does in zip(filled, counts, strict=True) if does] == [5, 6, 7, 8, 9, 15, 16, 17]
    assert fill_batches([], 5, 2) == ([], [])


def test_what_is_in_a_shard_does_not_depend_on_those_before_it(
    cached: Workspace, autoencoder: Params, tmp_path: Path, readers: object
):
    factory = make_factory(cached.experiment, cached.mesh, autoencoder, batch_size=8, shard_size=5)
    factory.write(cached.train, tmp_path / "one", share_of_process())
    whole = {path.name: path.read_bytes() for path in (tmp_path / "one").glob("*.array_record")}
    for name in sorted(whole)[1::2]:
        (tmp_path / "one" / name).unlink()
    factory.write(cached.train, tmp_path / "one", share_of_process())
    assert whole == {path.name: path.read_bytes() for path in (tmp_path / "one").glob("*.array_record")}


def test_work_is_handed_out_when_more_is_on_the_way():
    began: list[int] = []
    items = one_ahead(began.append(i) or i for i in range(3))
    assert [(item, len(began)) for item in items] == [(0, 2), (1, 3), (2, 3)]
    assert list(one_ahead([])) == []
