"""A trained classifier of noisy latents beside a model that draws, whose gradient it guides."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import jax
import numpy as np
from jaxtyping import Int32

from ldm_jax import rng, sharding
from ldm_jax.config import Experiment, MeshConfig, differences
from ldm_jax.denoiser.classifier import NoisyClassifier
from ldm_jax.errors import UserError
from ldm_jax.files.places import Place
from ldm_jax.model import Params, make_classifier, make_model
from ldm_jax.sampling.session import Session
from ldm_jax.training.checkpoints import abstract_like
from ldm_jax.training.run_folder import RunFolder


@dataclass(frozen=True, eq=False)
class Classifier:
    """A classifier with its parameters: those of `classifier`, `autoencoder` and `latent`."""

    experiment: Experiment
    module: NoisyClassifier
    params: Params
    class_names: tuple[str, ...]
    seal: Place

    def numbers(self, labels: Sequence[str | None]) -> Int32[np.ndarray, " b"]:
        """The numbers of classes, given by number or name.

        Raises:
            UserError: a picture has no class, or one that is unknown.
        """
        return np.asarray([self._number(label) for label in labels], np.int32)

    def _number(self, label: str | None) -> int:
        names = [name.lower() for name in self.class_names]
        listing = f"--class-label, one of {', '.join(self.class_names)}"
        if label is None:
            raise UserError(f"--classifier leads towards a class, and none is told; give {listing}")
        if label.lower() in names:
            return names.index(label.lower())
        if label.isdecimal() and int(label) < len(names):
            return int(label)
        raise UserError(f"the classifier does not know the class {label!r}; give {listing}")


def load_classifier(run_dir: Place) -> Classifier:
    """The classifier of a run, with the averaged parameters of its newest good checkpoint.

    Raises:
        UserError: the folder is not a run of a classifier, or has no checkpoint yet.
    """
    run = RunFolder(run_dir)
    experiment = run.load_config()
    if experiment.classifier is None:
        raise UserError(f"--classifier {run_dir} is the run of a model that draws; give one of a classifier")
    model, module = make_model(experiment), make_classifier(experiment)

    def init() -> Params:
        zt, t = jax.numpy.zeros((1, *model.latent_shape)), jax.numpy.zeros((1,), jax.numpy.int32)
        key = rng.root_key(0)
        parts = {"classifier": module.init(key, zt, t)["params"]}
        return {**parts, **model.init_autoencoder(key), **model.init_latent()}

    checkpoints, abstract = run.checkpoints("classifier"), {"model": jax.eval_shape(init)}
    mesh = sharding.make_mesh(MeshConfig())
    restored = checkpoints.restore_newest(abstract_like(abstract, sharding.state_shardings(mesh, abstract)))
    if restored is None:
        raise UserError(f"{run_dir} has no checkpoint of its classifier yet; train it first with the same command")
    step, items = restored
    names = tuple(run.read_manifest().get("data", {}).get("class_names", ()))
    return Classifier(experiment, module, items["model"], names, checkpoints.directory / f"{step:08d}.json")


def guided_by(session: Session, classifier: Classifier) -> Session:
    """The session with a classifier beside its model.

    Raises:
        UserError: the classifier works on other latents or another schedule.
    """
    parts = {
        "autoencoder": lambda e: e.first_stage.autoencoder,
        "diffusion.schedule": lambda e: e.diffusion.schedule,
    }
    one, other = session.experiment, classifier.experiment
    found = [line for name, part in parts.items() for line in differences(part(one), part(other), name)]
    for name in ("autoencoder", "latent") if not found else ():
        if not sharding.are_close(session.params[name], classifier.params[name], tolerance=1e-5):
            found.append(f"parameters of the {name} differ")
    if found:
        listing = "\n  ".join(found)
        raise UserError(
            f"the classifier works on other latents than {one.name}:\n  {listing}\ntrain it with --first-stage.run of "
            "that run, on the same data"
        )
    model = dataclasses.replace(session.model, classifier=classifier.module)
    params = {**session.params, "classifier": classifier.params["classifier"]}
    return dataclasses.replace(session, model=model, params=params, classifier=classifier.numbers)
