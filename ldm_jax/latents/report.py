"""What `ldm latents` says of a set: from what it was made, its spread and size, and what is damaged."""

from pathlib import Path
from typing import Any, TypeAlias

from ldm_jax.data.latent_manifest import (
    DamagedLatents,
    Manifest,
    faults,
    found_recipe,
    num_sealed,
    read_manifest,
)
from ldm_jax.errors import UserError

Row: TypeAlias = dict[str, Any]
"""What is known of one set, as JSON values, and its `damage`, a list of sentences."""


def show_set(folder: Path) -> Row:
    """What the manifest says; shards are not opened.

    Raises:
        UserError: the set is not finished, or its manifest is damaged.
    """
    manifest = _manifest(folder)
    recipe, layout = manifest.recipe, manifest.layout
    return {
        "folder": str(folder),
        "pictures": recipe.num_pictures,
        "shards": len(manifest.shards),
        "bytes": manifest.size,
        "bytes_per_picture": manifest.size / recipe.num_pictures,
        "arrays": {name: {"dtype": a.dtype, "shape": list(a.shape)} for name, a in layout.arrays.items()},
        "posterior": "point" if layout.is_point else "gaussian",
        "statistics": manifest.sums.as_json(),
        "recipe": recipe.as_json(),
        "damage": [],
    }


def verify_set(folder: Path) -> Row:
    """What is wrong with a set: of the manifest, or of each shard."""
    row: Row = {"folder": str(folder), "pictures": None, "shards": None, "damage": []}
    try:
        manifest = _manifest(folder)
    except UserError as error:
        return {**row, "damage": [str(error)]}
    found = [f"{path} {fault}" for path, fault in faults(folder, manifest, contents=True)]
    return {**row, "pictures": manifest.recipe.num_pictures, "shards": len(manifest.shards), "damage": found}


def _manifest(folder: Path) -> Manifest:
    try:
        return read_manifest(folder)
    except FileNotFoundError:
        recipe = found_recipe(folder)
        if recipe is None:
            raise DamagedLatents(f"{folder} has no manifest.json") from None
        done = num_sealed(folder, recipe)
        raise UserError(
            f"the latents in {folder} are not finished ({done} of {recipe.num_shards} shards are written); the same "
            "`ldm latents encode` goes on with them"
        ) from None


def as_text(rows: list[Row]) -> str:
    """For people."""
    return "\n".join(_shown(row) if "recipe" in row else _verified(row) for row in rows)


def _verified(row: Row) -> str:
    if row["damage"]:
        return "\n".join([f"{row['folder']}: damaged", *(f"  {line}" for line in row["damage"])])
    return f"{row['folder']}: {row['shards']} shards of {row['pictures']} pictures are whole"


def _shown(row: Row) -> str:
    recipe, statistics = row["recipe"], row["statistics"]
    info, data = recipe["info"], recipe["data"]
    arrays = ", ".join(f"{name} {a['dtype']} {a['shape']}" for name, a in row["arrays"].items())
    each = statistics["per_channel"]
    lines = [
        f"{row['folder']}: {row['pictures']} pictures in {row['shards']} shards, {_kib(row['bytes_per_picture'])} each",
        f"  pictures     {info['name']}/{info['split']}, fingerprint {info['fingerprint']}",
        f"  transform    {data['image_size']} pixels, {data['image_channels']} channels, "
        f"{'with' if data['horizontal_flip'] else 'without'} mirror images; {recipe['transform']}",
        f"  autoencoder  {recipe['autoencoder']}, in {recipe['compute_dtype']}",
        f"  records      {arrays}; the posterior is {'a point' if row['posterior'] == 'point' else 'Gaussian'}",
        f"  mean         {_numbers(each['mean'])}; overall {statistics['global']['mean']:.4g}",
        f"  spread       {_numbers(each['std'])}; overall {statistics['global']['std']:.4g}",
    ]
    return "\n".join(lines)


def _numbers(values: list[float]) -> str:
    return " ".join(f"{value:.4g}" for value in values)


def _kib(size: float) -> str:
    return f"{size / 1024:.1f} KiB"
