"""Pictures as files: one PNG each that says what it is, one grid, and nothing half-written in the wrong place."""

import logging
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from test_session import CONFIG, make_session

from ldm_jax.errors import UserError
from ldm_jax.sampling import files
from ldm_jax.sampling.files import draw_to_files
from ldm_jax.sampling.session import Session

pytestmark = pytest.mark.usefixtures("one_device")


@pytest.fixture(scope="module")
def session(data_cache: Path) -> Session:
    return make_session(data_cache)


@pytest.fixture
def draw(session: Session, tmp_path: Path) -> Any:
    """`draw_to_files` of that session into `out`, with what a command gives by default."""

    def draw(out: Path = tmp_path / "out", **changes: Any) -> list[Path]:
        defaults = {"prompts": (), "class_labels": (), "num_samples": 2, "seed": 3, "config": CONFIG, "batch_size": 16}
        return draw_to_files(session, **{**defaults, **changes}, out=out)

    return draw


def test_each_picture_and_a_grid(draw: Any, tmp_path: Path, session: Session):
    found = draw(prompts=("a red circle", "a blue square"))
    assert [path.parent for path in found] == [tmp_path / "out"] * 5
    assert sorted(found) == sorted((tmp_path / "out").iterdir())
    pictures = [Image.open(path) for path in found[:-1]]
    assert {picture.size for picture in pictures} == {session.model.image_shape[1::-1]}
    assert [picture.info["prompt"] for picture in pictures] == ["a red circle"] * 2 + ["a blue square"] * 2
    assert [picture.info["index"] for picture in pictures] == ["0", "1", "2", "3"]
    assert {(picture.info["seed"], picture.info["credit"]) for picture in pictures} == {("3", "by nobody")}
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


def test_no_picture_is_overwritten(draw: Any, tmp_path: Path):
    first = draw(prompts=("A red circle!",))
    content = [path.read_bytes() for path in first]
    second = draw(prompts=("A red circle!",))
    assert first[0].name == "a-red-circle_seed3_0000.png"
    assert second[0].name == "a-red-circle_seed3_0000-2.png"
    assert not set(first) & set(second)
    assert [path.read_bytes() for path in first] == content


def test_more_pictures_than_memory_could_hold(draw: Any, tmp_path: Path):
    message = "100002 pictures are too many for one call; draw at most 100000, with several --seed"
    with pytest.raises(UserError, match=message):
        draw(num_samples=50_001, prompts=("a", "b"))
    assert not (tmp_path / "out").exists()


def test_a_grid_has_so_many_rows_and_columns(draw: Any, monkeypatch: pytest.MonkeyPatch, caplog: Any):
    pictures = [np.full((8, 8, 3), 40 * i, np.uint8) for i in range(6)]
    monkeypatch.setattr(Session, "draw", lambda self, *arguments: iter(pictures))
    monkeypatch.setattr(files, "_GRID_COLUMNS", 2)
    monkeypatch.setattr(files, "_GRID_ROWS", 1)
    with caplog.at_level(logging.INFO):
        *written, grid = draw(prompts=("a red circle", "a blue square"), num_samples=3)
    assert len(written) == 6
    assert "6 pictures in" in caplog.text and "2 of them in" in caplog.text
    width, height = Image.open(grid).size
    assert height < 150 and width > 200
