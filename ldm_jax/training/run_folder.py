"""A run is a folder: its configuration, a manifest of how it was made, checkpoints, metrics and pictures.

config.json      the resolved experiment          checkpoints/STAGE/   what the model learned
manifest.json    versions, commit, devices, data  metrics.jsonl        a line every log_every steps
tokenizer.json   of text-conditional runs         tensorboard/, samples/, loss.png
"""

import contextlib
import hashlib
import json
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tokenizers import Tokenizer

from ldm_jax import config as configs
from ldm_jax import manifest as manifests
from ldm_jax.conditioning.tokenizer import load_tokenizer, token_inputs
from ldm_jax.data.preparation import default_cache_dir
from ldm_jax.errors import UserError
from ldm_jax.files.folders import alone_in, seen
from ldm_jax.files.places import Place, is_local
from ldm_jax.files.whole_files import write_atomically
from ldm_jax.training.checkpoint_contents import digest_checkpoint
from ldm_jax.training.checkpoints import Checkpoints
from ldm_jax.training.keep_policy import KeepPolicy
from ldm_jax.training.seals import DamagedCheckpoint

logger = logging.getLogger(__name__)

STAGES = ("autoencoder", "diffusion", "classifier")


@dataclass(frozen=True)
class RunFolder:
    """Paths of a run and what is written at its start."""

    path: Place

    @property
    def config_file(self) -> Place:
        """The resolved experiment."""
        return self.path / "config.json"

    @property
    def manifest_file(self) -> Place:
        """How the run is made."""
        return self.path / manifests.NAME

    def tokenizer_file(self, name: str = "tokens") -> Place:
        """Tokenizer of a text-conditional run that makes the conditioner's input `name`."""
        return self.path / f"{name.replace('tokens', 'tokenizer')}.json"

    def load_tokenizers(self, config: configs.Conditioning) -> dict[str, Tokenizer]:
        """The run's tokenizers by the input that each makes; raises UserError where `load_tokenizer` does."""
        lengths = token_inputs(config).items()
        return {name: load_tokenizer(self.tokenizer_file(name), length) for name, length in lengths}

    def save_tokenizers(self, tokenizers: Mapping[str, Tokenizer]) -> None:
        """Write those that are not there yet."""
        for name, tokenizer in tokenizers.items():
            if not self.tokenizer_file(name).exists():
                write_atomically(self.tokenizer_file(name), tokenizer.to_str())

    @property
    def metrics_file(self) -> Place:
        """Metrics, one JSON object a line."""
        return self.path / "metrics.jsonl"

    @property
    def samples(self) -> Place:
        """Folder of pictures."""
        return self.path / "samples"

    @property
    def latents(self) -> Path:
        """Where latents are cached: in the run, or, for a run in an object store, in the cache of this machine."""
        if isinstance(self.path, Path) or is_local(self.path):
            return Path(self.path) / "latents"
        return default_cache_dir() / "latents" / hashlib.sha256(str(self.path).encode()).hexdigest()

    def checkpoints(self, stage: str, keep: KeepPolicy | None = None) -> Checkpoints:
        """Checkpoints of a stage (`autoencoder` or `diffusion`)."""
        return Checkpoints(self.path / "checkpoints" / stage, keep or KeepPolicy())

    def snapshots(self, stage: str) -> Checkpoints:
        """Averages of a stage from which others are rebuilt, all of them kept."""
        return self.checkpoints(f"{stage}_snapshots", KeepPolicy(every=1))

    def examples_at(self, stage: str, step: int) -> int:
        """Position of a stage in its data after a step: the examples that it has taken."""
        experiment = self.load_config()
        is_first = stage.startswith("autoencoder")
        training = experiment.first_stage.training if is_first else experiment.training
        return step * training.batch_size

    def load_config(self) -> configs.Experiment:
        """The experiment of this run; raises UserError where `restore_experiment` does."""
        return configs.restore_experiment(self.config_file)

    def check(self, experiment: configs.Experiment) -> None:
        """Refuse a folder that holds something else than this experiment; touches nothing.

        Raises:
            UserError: the folder holds another experiment, or is no run folder at all.
        """
        if self.config_file.exists():
            changed = list(configs.differences(self.load_config(), experiment))
            if changed:
                listing = "\n  ".join(changed)
                raise UserError(
                    f"{self.path} holds a run with another configuration:\n  {listing}\nnothing was changed; use the "
                    "same configuration to continue it, or another folder: --run-dir DIR"
                )
        elif self.path.exists() and (not self.path.is_dir() or any(p.suffix != ".tmp" for p in self.path.iterdir())):
            raise UserError(f"{self.path} exists and is not a run folder; use another one: --run-dir DIR")

    def check_writable(self) -> None:
        """Refuse a folder on a file system in which nothing may be written, before anything is computed for it.

        Raises:
            UserError: it, or the folder in which it would be created, may not be written.
        """
        if not is_local(self.path):
            return
        path = Path(self.path).absolute()
        there = next(folder for folder in (path, *path.parents) if folder.exists())
        if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
            raise UserError(f"cannot write to {path} ({there} may not be written); use another folder: --run-dir DIR")

    def open(self, experiment: configs.Experiment) -> None:
        """Create the folder, or continue the one that `check` found fitting.

        Raises:
            UserError: it cannot be written.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            # first, for it makes this a run, in which what was interrupted here goes on
            write_atomically(self.config_file, json.dumps(configs.to_dict(experiment), indent=1) + "\n")
            self.samples.mkdir(exist_ok=True)
        except OSError as error:
            raise UserError(f"cannot write to {self.path} ({error}); use another folder: --run-dir DIR") from error

    def require_opened(self) -> None:
        """Refuse a folder that the first process has opened, and this one does not see.

        Raises:
            UserError: it is not there, also after the seconds that a network disk may take to show it.
        """
        if not seen(self.config_file.exists):
            raise UserError(
                f"process 0 has opened {self.path}, and it is not there for this process; it has to be one folder that "
                "all of them see: a shared file system, or gs://"
            )

    def claimed(self) -> contextlib.AbstractContextManager[None]:
        """Be the only program that trains in this folder; the system gives it up when this one ends, however it ends.

        Raises:
            UserError: another one trains in it.
        """
        if not is_local(self.path):
            return contextlib.nullcontext()
        return alone_in(
            Path(self.path),
            f"another program trains in {self.path}; wait for it, or end it (a launcher that was killed leaves its "
            "processes behind)",
        )

    def write_manifest(
        self, experiment: configs.Experiment, data: dict[str, Any], kind: Literal["run", "model"] = "run"
    ) -> None:
        """Write how this run is made: experiment, versions, commit, devices, data fingerprint, seed, flags.

        When a run goes on, what it started with stays, and a line of `continued` tells what it goes on with.
        """
        manifest, now = self.read_manifest(), manifests.circumstances()
        if not manifest:
            if self.manifest_file.exists():
                logger.warning("%s is damaged and is written anew, with what is known now", self.manifest_file)
            asked = {"config": configs.to_dict(experiment), "mesh": configs.to_dict(experiment.mesh)}
            manifest = manifests.make_manifest(kind, **asked, seed=experiment.seed, data=data, autoencoder=None)
        else:
            manifest["continued"].append(now)
            if manifest["devices"] and manifest["devices"] != now["devices"]:
                logger.warning(
                    "%s was started on %d devices (%s) and goes on with %d (%s): equal up to rounding, not to the bit",
                    *(self.path, len(manifest["devices"]), manifest["devices"][0]),
                    *(len(now["devices"]), now["devices"][0]),
                )
        write_atomically(self.manifest_file, manifests.as_text(manifest))

    def record_results(self, autoencoder: str, *, digests: bool = True) -> None:
        """Add to the manifest of a finished run the checksum of its autoencoder, and `digests` as its results."""
        if manifest := self.read_manifest():
            found = {"autoencoder": autoencoder} | ({"results": self.digests()} if digests else {})
            write_atomically(self.manifest_file, manifests.as_text(manifest | found))

    def digests(self) -> dict[str, Any]:
        """Step and digest of the newest checkpoint of each stage that has one.

        Raises:
            DamagedCheckpoint: one cannot be read.
        """
        newest = {stage: self.checkpoints(stage).steps()[-1:] for stage in STAGES}
        return {stage: self._digest(stage, steps[0]) for stage, steps in newest.items() if steps}

    def _digest(self, stage: str, step: int) -> dict[str, Any]:
        folder = self.checkpoints(stage).folder(step)
        return {"step": step, "sha256": digest_checkpoint(folder, step, self.examples_at(stage, step))}

    def read_manifest(self) -> manifests.Manifest:
        """What `write_manifest` wrote; empty when it is missing or damaged, for no result depends on it."""
        return manifests.known_manifest(self.manifest_file)

    def check_data(self, data: dict[str, Any]) -> None:
        """Refuse to go on with other data than the run was started with; where they lie does not matter.

        Raises:
            UserError: a split has another fingerprint.
        """
        for split, known in self.read_manifest().get("data", {}).items():
            if isinstance(known, dict) and known.get("fingerprint") != data.get(split, {}).get("fingerprint"):
                raise UserError(
                    f"the {split} split of {known.get('name')} has changed since {self.path} was started "
                    f"({known.get('num_pictures')} pictures then); restore the data, or train into another folder: "
                    "--run-dir DIR"
                )

    def check_perceptual(self, fingerprint: str | None) -> None:
        """Refuse to go on with another LPIPS than the run was started with.

        Raises:
            UserError: its weights have another fingerprint.
        """
        known = self.read_manifest().get("data", {}).get("perceptual")
        if known not in (None, fingerprint):
            raise UserError(
                f"the weights of LPIPS are not those that {self.path} was started with; restore them, or train into "
                "another folder: --run-dir DIR"
            )

    def is_finished(self, experiment: configs.Experiment) -> bool:
        """Whether the checkpoint of the last step is there, and whole."""
        checkpoints, last = self.checkpoints(experiment.second_stage), experiment.training.num_steps
        if last not in checkpoints.steps():
            return False
        try:
            checkpoints.verify(last)
        except DamagedCheckpoint:
            return False
        return True
