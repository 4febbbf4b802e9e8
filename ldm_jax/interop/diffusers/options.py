"""The options of a diffusers config.json: each is used, changes nothing, or is refused by name."""

import dataclasses
from collections.abc import Collection, Mapping
from typing import Any

from ldm_jax.errors import UserError
from ldm_jax.interop.foreign_options import refusal

Options = Mapping[str, Any]

ACTIVATIONS = ("silu", "swish")  # two names of one function

VERSION = "0.42.1"
"""The version of diffusers whose options these are."""


def read_options(config: Options, defaults: Options, neutral: Mapping[str, tuple], where: str) -> dict[str, Any]:
    """Every option of a class, with the class's own value where the file has none, and lists as tuples.

    Args:
        config: the file's content; names that begin with an underscore are not options.
        defaults: the options that the class has, with their default values.
        neutral: options for which only some values are usable, with these.
        where: the file, for messages.

    Raises:
        UserError: the class has no such option, or its value is none of the usable ones.
    """
    given = {name: _frozen(value) for name, value in config.items() if not name.startswith("_")}
    unknown = sorted(set(given) - set(defaults))
    if unknown:
        name = unknown[0]
        kind = config.get("_class_name", "the class")
        raise refusal(where, name, given[name], f"{kind} has the options {', '.join(sorted(defaults))}")
    options = {**defaults, **given}
    for name, usable in neutral.items():
        if options[name] not in usable:
            raise refusal(where, name, options[name], "usable: " + ", ".join(repr(value) for value in usable))
    return options


def _frozen(value: Any) -> Any:
    return tuple(_frozen(entry) for entry in value) if isinstance(value, list | tuple) else value


def number(options: Options, name: str, where: str) -> int:
    """An option that must be one whole number, not one for each level."""
    value = options[name]
    if isinstance(value, bool) or not isinstance(value, int):
        raise refusal(where, name, value, "usable: a whole number")
    return value


def per_level(options: Options, name: str, levels: int, where: str, kind: type = int) -> tuple[Any, ...]:
    """An option of one value, or of one for each level, as one for each level."""
    value = options[name]
    values = value if isinstance(value, tuple) else (value,) * levels
    fits = all(isinstance(entry, kind) and (kind is bool or not isinstance(entry, bool)) for entry in values)
    if len(values) != levels or not fits:
        what = "True or False" if kind is bool else "a whole number"
        raise refusal(
            where, name, value, f"usable: {what}, or one for each of the {levels} entries of block_out_channels"
        )
    return values


def level_blocks(options: Options, name: str, usable: Mapping[str, Any], where: str) -> tuple[Any, ...]:
    """What `usable` says of each entry of `down_block_types` or `up_block_types`."""
    kinds = options[name]
    if not isinstance(kinds, tuple) or len(kinds) != len(options["block_out_channels"]):
        raise refusal(
            where, name, kinds, f"block_out_channels={options['block_out_channels']} needs one for each entry"
        )
    known = {**usable, **{f"UNetRes{kind}": blocks for kind, blocks in usable.items()}}  # their first names
    for kind in kinds:
        if kind not in known:
            raise refusal(where, name, kind, f"usable: {', '.join(usable)}")
    return tuple(known[kind] for kind in kinds)


def channel_mult(options: Options, where: str) -> dict[str, Any]:
    """`base_channels` and `channel_mult` from `block_out_channels`."""
    channels = options["block_out_channels"]
    if not isinstance(channels, tuple) or not channels or not all(isinstance(c, int) and c > 0 for c in channels):
        raise refusal(where, "block_out_channels", channels, "usable: whole numbers above 0, one for each level")
    base = channels[0]
    return {"base_channels": base, "channel_mult": tuple(c // base if c % base == 0 else c / base for c in channels)}


def one_or_each(values: tuple[Any, ...]) -> Any:
    """One value where all levels have the same, else one for each level."""
    return values[0] if len(set(values)) == 1 else values


def require_written(possible: bool, config: Any, name: str, reason: str) -> None:
    """Refuse a field of our configuration that diffusers has no option for."""
    if not possible:
        value = getattr(config, name)
        raise UserError(f"{type(config).__name__}.{name}={value!r} cannot be written for diffusers: {reason}")


def require_defaults(config: Any, written: Collection[str]) -> None:
    """Refuse every field of our configuration that is not written and is not as if it were not there."""
    for field in dataclasses.fields(config):
        if field.name not in written:
            as_default = getattr(config, field.name) == field.default
            require_written(as_default, config, field.name, f"it has no option for it; use {field.default!r}")


def complete(class_name: str, defaults: Options, options: Options) -> dict[str, Any]:
    """A config.json with every option of a class, tuples as lists."""
    known = {**defaults, **options}
    return {
        "_class_name": class_name,
        "_diffusers_version": VERSION,
        **{name: list(value) if isinstance(value, tuple) else value for name, value in sorted(known.items())},
    }
