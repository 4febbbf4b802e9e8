"""Reports: one page that holds everything, from what runs have left in their folders."""

import base64
import dataclasses
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from ldm_jax import cli
from ldm_jax.config import Experiment
from ldm_jax.errors import UserError
from ldm_jax.report.document import Folded, Heading, Paragraph, Picture, Table, as_html, as_markdown
from ldm_jax.report.figures import MAX_POINTS, thinned
from ldm_jax.report.gather import distinct_names, flat_config, gather_runs
from ldm_jax.training.run_folder import RunFolder

SCORE = {"name": "fd_alexnet", "value": 12.5, "low": 11.0, "high": 14.0, "num_samples": 2000, "num_reference": 1400}


def write_run(path: Path, seed: int = 0, factor: float = 1.0) -> Path:
    """The folder of a run that is half done, with everything that a report shows."""
    run = RunFolder(path)
    experiment = dataclasses.replace(Experiment(), seed=seed)
    run.open(experiment)
    run.write_manifest(experiment, {"train": {"name": "shapes", "num_pictures": 64, "fingerprint": "a"}})
    lines = [
        {"stage": stage, "step": step, "loss": factor / step, "heldout_loss": 2 * factor / step, "grad_norm": 1.0}
        for stage in ("autoencoder", "diffusion")
        for step in range(1, 40)
    ]
    run.metrics_file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    for name in ("samples_000010", "samples_000020", "heldout"):
        Image.fromarray(np.full((8, 8, 3), len(name), np.uint8)).save(run.samples / f"{name}.png")
    (path / "evaluation" / "test").mkdir(parents=True)
    record = {"kind": "scores", "results": {"scores": [SCORE | {"value": 12.5 * factor, "network": "alexnet"}]}}
    (path / "evaluation" / "scores.json").write_text(json.dumps(record))
    (path / "evaluation" / "test" / "notes.json").write_text("[1, {")
    return path


class Page(HTMLParser):
    """What a browser would look for."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.sources: list[str] = []
        self.links: list[str] = []
        self.open: list[str] = []
        self.words: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.sources += [values["src"] or ""] if "src" in values else []
        self.links += [values["href"] or ""] if "href" in values else []
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def test_a_page_holds_everything_of_two_runs(tmp_path: Path):
    first, second = write_run(tmp_path / "a" / "run"), write_run(tmp_path / "b" / "run", seed=1, factor=2.0)
    out = tmp_path / "deep" / "report.html"
    assert cli.run(cli.report, [str(first), str(second), "--out", str(out)]) == 0
    text = out.read_text()
    page = Page(text)
    assert page.open == []
    assert page.links == [] and not re.search(r"https?://(?!www\.w3\.org)", text), "nothing is fetched"
    kinds = [source.partition(";")[0] for source in page.sources]
    assert kinds.count("data:image/svg+xml") == 5, "loss and gradient norm of two stages, and a score"
    assert kinds.count("data:image/png") == 4, "the newest grid of a kind, for two runs"
    for source in page.sources:
        content = base64.b64decode(source.partition("base64,")[2])
        if "svg" in source[:20]:
            assert ElementTree.fromstring(content).tag.endswith("svg")
    words = " ".join(page.words)
    assert "seed 0 1" in words, "the configurations differ in the seed"
    assert "a/run 12.5 11 to 14 2000 1400 - alexnet scores.json" in words
    assert "b/run 25 11 to 14" in words
    assert "step 39 of" in words and "Versions, machine, flags and devices are the same, as far as" in words


def test_markdown_has_its_pictures_beside_it(tmp_path: Path):
    run = write_run(tmp_path / "run")
    assert cli.run(cli.report, [str(run), "--out", str(tmp_path / "a.md"), "--title", "One run"]) == 0
    text = (tmp_path / "a.md").read_text()
    assert text.startswith("# One run\n")
    paths = re.findall(r"!\[.*?\]\((.*?)\)", text)
    assert len(paths) == 6
    assert all((tmp_path / path).is_file() for path in paths)
    assert "| fd\\_alexnet | run | 12.5 | 11 to 14 | 2000 | 1400 | - | alexnet | scores.json |" in text
    assert "## Configurations" not in text, "there is nothing to compare one run with"


def test_a_run_that_has_just_begun(tmp_path: Path):
    RunFolder(tmp_path / "run").open(Experiment())
    assert cli.run(cli.report, [str(tmp_path / "run"), "--out", str(tmp_path / "a.html")]) == 0
    words = " ".join(Page((tmp_path / "a.html").read_text()).words)
    assert "There are none yet: ldm evaluate RUN" in words
    assert "step 0 of" in words


def test_nothing_in_a_text_is_markup():
    blocks = [Heading("<b>"), Paragraph("a & b\n# c"), Table(("x|y",), [("*<i>*",)]), Folded("<t>", "</pre>")]
    page = as_html("<title>", blocks)
    assert not re.search(r"<b>|<i>|</pre></pre>|<title><title>", page)
    assert Page(page).open == []
    text = as_markdown("t", [*blocks, Picture("a.png", b"", "c*d")], lambda picture: picture.name)
    assert "## &lt;b&gt;\n\na &amp; b # c\n\n| x\\|y |\n| --- |\n| \\*&lt;i&gt;\\* |" in text
    assert "![c\\*d](a.png)" in text


def test_what_is_wrong_is_said_before_anything_is_written(tmp_path: Path):
    run = str(write_run(tmp_path / "run"))
    cases = {
        r"name at least one run: ldm report RUN": [],
        r"--out a\.pdf must end in \.html or \.md": [run, "--out", "a.pdf"],
        r"nothing/config\.json does not exist: .*nothing is not a run folder": [str(tmp_path / "nothing")],
        r"the run .*run is given twice; leave it out": [run, run],
        r"cannot write .*run/config\.json/a\.html \(.*\); choose another file": [
            *(run, "--out", f"{run}/config.json/a.html")
        ],
    }
    for message, flags in cases.items():
        with pytest.raises(UserError, match=message):
            cli.report(["--out", str(tmp_path / "a.html"), *flags])
    assert not (tmp_path / "a.html").exists()


def test_names_tell_runs_apart(tmp_path: Path):
    paths = [tmp_path / "x" / "a", tmp_path / "y" / "a", tmp_path / "b"]
    assert distinct_names(paths[:2]) == ["x/a", "y/a"]
    assert distinct_names(paths[1:]) == ["a", "b"]


def test_long_curves_are_thinned_to_their_end():
    points = [(float(i), float(i)) for i in range(5 * MAX_POINTS + 3)]
    kept = thinned(points)
    assert MAX_POINTS * 0.8 < len(kept) <= MAX_POINTS
    assert kept[-1] == points[-1]
    assert thinned([(0.0, 1.0), (1.0, float("nan"))]) == [(0.0, 1.0)]


def test_a_configuration_by_its_paths(tmp_path: Path):
    flat = flat_config(Experiment())
    assert flat["seed"] == "0" and flat["training.batch_size"].isdecimal()
    (facts,) = gather_runs([write_run(tmp_path / "run")])
    assert [score["name"] for _, score in facts.scores] == ["fd_alexnet"], "a file that is none is passed over"
