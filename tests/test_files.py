"""Pictures as files: one PNG each that says what it is, one grid, nothing half-written; what was stopped goes on."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from drawing import ORIGINS, easel_for
from PIL import Image
from test_session import make_session

from ldm_jax.config import SamplingConfig
from ldm_jax.errors import UserError
from ldm_jax.sampling.description import Origin, Origins
from ldm_jax.sampling.draw import Easel
from ldm_jax.sampling.files import draw_to_files, folder_for
from ldm_jax.sampling.session import Session

pytestmark = pytest.mark.usefixtures("one_device")


@pytest.fixture(scope="module")
def session(data_cache: Path) -> Session:
    return make_session(data_cache)


@pytest.fixture
def draw(session: Session, tmp_path: Path) -> Any:
    """`draw_to_files` of that session into `out`, with what a command gives by default."""

    def draw(out: Path = tmp_path / "out", origins: Origins = ORIGINS, **asked: Any) -> list[Path]:
        easel = easel_for(session, **{"num_samples": 2, "seed": 3, **asked})
        return draw_to_files(easel, origins, out=out, batch_size=16, credit="by nobody")

    return draw


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def pictures(folder: Path) -> dict[str, bytes]:
    return {name: content for name, content in contents(folder).items() if name.endswith(".png")}


def test_each_picture_and_a_grid(draw: Any, tmp_path: Path, session: Session):
    found = draw(prompts=("a red circle", "a blue square"))
    assert [path.parent for path in found] == [tmp_path / "out"] * 5
    assert sorted([*found, tmp_path / "out" / "manifest.json"]) == sorted((tmp_path / "out").iterdir())
    pictures = [Image.open(path) for path in found[:-1]]
    assert {picture.size for picture in pictures} == {session.model.image_shape[1::-1]}
    assert [picture.info["prompt"] for picture in pictures] == ["a red circle"] * 2 + ["a blue square"] * 2
    assert [picture.info["index"] for picture in pictures] == ["0", "1", "2", "3"]
    assert {(picture.info["seed"], picture.info["credit"]) for picture in pictures} == {("3", "by nobody")}
    assert {picture.info["model"] for picture in pictures} == {"0123abcd"}
    assert {picture.info["sampler"] for picture in pictures} == {"ddim, 2 steps, guidance scale 2.0"}
    assert Image.open(found[-1]).size[0] > 2 * 96


def test_without_a_prompt_it_draws_anything(draw: Any):
    assert len(draw(num_samples=2)) == 3


def test_the_first_picture_is_the_same_whatever_is_drawn_with_it(draw: Any, tmp_path: Path):
    one = draw(tmp_path / "one", prompts=("a red circle",))[0]
    two = draw(tmp_path / "two", prompts=("a red circle", "a blue square"))[0]
    pixels = [np.asarray(Image.open(path)).astype(int) for path in (one, two)]
    assert np.abs(pixels[0] - pixels[1]).max() <= 1


def test_prompts_and_classes_together(draw: Any, tmp_path: Path):
    with pytest.raises(UserError, match="give --prompt or --class-label, not both"):
        draw(prompts=("a",), class_labels=("0",))
    assert not (tmp_path / "out").exists()


def test_classes_to_a_model_of_text_leave_no_folder(draw: Any, tmp_path: Path):
    with pytest.raises(UserError, match="takes no class label"):
        draw(class_labels=("0",))
    assert not (tmp_path / "out").exists()


def test_a_folder_that_cannot_be_written(draw: Any, tmp_path: Path):
    (tmp_path / "file").write_text("")
    out = tmp_path / "file" / "out"
    message = (
        rf"cannot write pictures to {re.escape(str(out))} \(.*Not a directory.*\); choose another folder: --out DIR"
    )
    with pytest.raises(UserError, match=message):
        draw(out)


def test_the_same_request_does_nothing_when_all_is_there(draw: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    first = draw(prompts=("A red circle!",))
    assert first[0].name == "a-red-circle_seed3_0000.png"
    before = contents(tmp_path / "out")
    monkeypatch.setattr(Easel, "_batch", lambda *_: pytest.fail("something is drawn"))
    assert draw(prompts=("A red circle!",)) == first
    assert contents(tmp_path / "out") == before


def test_another_request_is_refused_and_says_what_differs(draw: Any, tmp_path: Path):
    draw(prompts=("a red circle",))
    before = contents(tmp_path / "out")
    message = r"out holds pictures of another request:\n  seed: \[3\] -> \[4\]\nnothing was changed; ask for the same"
    with pytest.raises(UserError, match=message):
        draw(prompts=("a red circle",), seed=4)
    with pytest.raises(UserError, match=r"num_sample_steps.: 2.* -> .*num_sample_steps.: 3"):
        draw(prompts=("a red circle",), config=SamplingConfig(num_sample_steps=3, guidance_scale=2.0))
    with pytest.raises(UserError, match="model_sha256: '0123abcd' -> 'other'"):
        draw(prompts=("a red circle",), origins=Origins(model=Origin(path="/run", sha256="other")))
    assert contents(tmp_path / "out") == before


def test_a_picture_in_the_way_is_not_overwritten(draw: Any, tmp_path: Path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "seed3_0001.png").write_text("mine")
    with pytest.raises(UserError, match=r"seed3_0001\.png is there already and is not overwritten; choose another"):
        draw()
    assert contents(tmp_path / "out") == {"seed3_0001.png": b"mine"}
    (tmp_path / "out" / "manifest.json").write_text("{")
    with pytest.raises(UserError, match=r"manifest\.json is damaged, or of another version; choose another folder"):
        draw()


class Killed(BaseException):
    """What no code expects."""


@pytest.mark.parametrize("error", [Killed, KeyboardInterrupt])
def test_what_was_stopped_goes_on_and_ends_the_same(
    session: Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any, error: type[BaseException]
):
    def draw(out: Path) -> list[Path]:
        easel = easel_for(session, prompts=("a red circle",), num_samples=7, seed=1)
        return draw_to_files(easel, ORIGINS, out=out, batch_size=2)

    whole, parts, drawn = tmp_path / "whole", tmp_path / "parts", []
    draw(whole)
    original = Easel._draw_batch

    def stops(self: Easel, *arguments: Any) -> Any:
        for picture in original(self, *arguments):
            if len(drawn) == 3:
                raise error
            drawn.append(picture.position)
            yield picture

    monkeypatch.setattr(Easel, "_draw_batch", stops)
    with pytest.raises(error):
        draw(parts)
    monkeypatch.setattr(Easel, "_draw_batch", original)
    assert [path.name[-8:] for path in sorted(parts.glob("*.png"))] == ["0000.png", "0001.png", "0002.png"]
    assert ("3 of 7 pictures are in" in caplog.text) is (error is KeyboardInterrupt)
    (parts / "a-red-circle_seed1_0003.png.tmp").write_bytes(b"half a picture")
    draw(parts)
    manifests = [json.loads(contents(folder)["manifest.json"]) for folder in (parts, whole)]
    assert [len(manifest["continued"]) for manifest in manifests] == [1, 0]
    assert manifests[0]["results"] == manifests[1]["results"]
    assert len(manifests[0]["results"]) == 7
    assert pictures(parts) == pictures(whole)


def test_a_picture_is_there_as_a_whole_or_not_at_all(draw: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def half(self: Any, file: Any, **_: Any) -> None:
        file.write(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(Image.Image, "save", half)
    with pytest.raises(UserError, match=r"cannot write pictures to .*disk full"):
        draw()
    assert list((tmp_path / "out").glob("*.png")) == []


def test_a_folder_is_found_again_and_another_request_gets_another(session: Session, tmp_path: Path):
    easel = easel_for(session, prompts=("a red circle",), num_samples=1)
    first = folder_for(tmp_path, easel.request, ORIGINS)
    assert first == tmp_path / "a-red-circle_seed0"
    draw_to_files(easel, ORIGINS, out=first, batch_size=1)
    assert folder_for(tmp_path, easel.request, ORIGINS) == first
    other = easel_for(session, prompts=("a red circle",), num_samples=2)
    assert folder_for(tmp_path, other.request, ORIGINS) == tmp_path / "a-red-circle_seed0-2"


def test_a_manifest_stays_small(session: Session):
    prompts = tuple(f"a red circle {i}" for i in range(300))
    summary = easel_for(session, prompts=prompts, num_samples=1).request.summary()
    assert summary["pictures"] == 300
    assert len(json.dumps(summary)) < 3000
