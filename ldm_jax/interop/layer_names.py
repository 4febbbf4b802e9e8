"""Which of our modules is which of PyTorch's: those are the same that hold the same parameters.

A format says for each of our parameters the name of its tensor (`mapping`), and with that for every module of either
side the set of tensors in it. Two modules are paired when these sets are equal. Of modules inside each other with the
same tensors, as a level with one block in it, the innermost that puts something out stands for all.
"""

from collections.abc import Collection, Iterable
from typing import NamedTuple

from ldm_jax.interop.mapping import SlotOf

_INSIDE_BLOCK = "/attention/attention"
"""End of the path of our plain attention, inside the block that adds its norm and skip connection. PyTorch's module is
the block; where that has no norm, both of ours would hold the same tensors."""


class Modules(NamedTuple):
    """PyTorch's names of modules and the paths of ours."""

    layers: dict[str, str]
    """Those that hold parameters themselves: convolutions, dense layers, norms."""
    groups: dict[str, str]
    """Those that are made of others."""


def module_pairs(paths: Iterable[str], slot_of: SlotOf, theirs: Collection[str], ours: Collection[str]) -> Modules:
    """The modules that are the same; the whole is not one of them.

    Args:
        paths: of our parameters.
        slot_of: the format.
        theirs: names of PyTorch's modules that put something out.
        ours: paths of our modules that do.
    """
    names = {path: slot_of(path).name for path in paths}
    layers = {name.rpartition(".")[0]: path.rpartition("/")[0] for path, name in names.items()}
    their_groups = _groups({name: name.split(".") for name in names.values()}, ".", theirs)
    our_groups = _groups({name: path.split("/") for path, name in names.items()}, "/", ours)
    groups = {their_groups[tensors]: path for tensors, path in our_groups.items() if tensors in their_groups}
    return Modules({name: path for name, path in layers.items() if path}, groups)


def _groups(routes: dict[str, list[str]], joint: str, usable: Collection[str]) -> dict[frozenset[str], str]:
    """Modules made of others by the tensors in them, the innermost usable one for each set.

    Args:
        routes: to each tensor: its modules from the outermost on, and its own name.
        joint: between the parts of a module's name.
        usable: the modules that count.
    """
    holds: dict[str, set[str]] = {}
    for tensor, route in routes.items():
        for depth in range(1, len(route) - 1):  # without the module that holds it itself
            holds.setdefault(joint.join(route[:depth]), set()).add(tensor)
    modules = [module for module in holds if module in usable and not module.endswith(_INSIDE_BLOCK)]
    return {frozenset(holds[module]): module for module in sorted(modules, key=len)}  # the last of equals is innermost
