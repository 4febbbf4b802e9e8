"""Flags of XLA with which programs compile quickest; they run slower, which small ones do not notice."""

from importlib.metadata import version

OLD_FUSIONS = ("--xla_cpu_use_fusion_emitters=false",) if version("jaxlib").startswith("0.10.") else ()
"""The older way of writing fusions takes half the time, and jax 0.12 does not know it any more."""

QUICK = " ".join(("--xla_backend_optimization_level=0", *OLD_FUSIONS))
"""Without LLVM's optimisations compiling takes half the time, too. jax reads $XLA_FLAGS once, when it is imported."""
