"""The PyTorch side of `ldm benchmark`, a program of its own: the same work by diffusers, as its users write it.

    python torch_side.py TASK.json DEVICE [--compile]

It imports torch and diffusers, nothing imports it, and it answers the questions that `jax_side` answers, a line of JSON
each. Training is AdamW with clipping in a plain loop and, in bfloat16, under autocast; sampling is `DDIMScheduler`; for
inference in bfloat16 the weights are of that type. Training also keeps a moving average of the parameters, as this
project's step does, in the quickest way that PyTorch has.
"""

# pyright: reportMissingImports=false, reportPrivateImportUsage=false

import ctypes
import json
import os
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch

Tensors = dict[str, Any]
Arrays = dict[str, np.ndarray]


def call_unet(model: Any, x: Any, t: Any, conditions: Tensors) -> Any:
    """The prediction of either U-Net."""
    added = {name: conditions[name] for name in ("text_embeds", "time_ids") if name in conditions}
    others = {name: value for name, value in conditions.items() if name not in added}
    return model(x, t, **others, **({"added_cond_kwargs": added} if added else {})).sample


def unet_loss(side: "TorchSide", model: Any) -> Any:
    """Mean squared error of the noise."""
    schedule = side.task["schedule"]
    scheduler: Any = diffusers.DDPMScheduler(beta_schedule="scaled_linear", **schedule)
    x, noise, t = (side.inputs[name] for name in ("sample", "noise", "timestep"))
    prediction = call_unet(model, scheduler.add_noise(x, noise, t), t, side.conditions)
    return torch.nn.functional.mse_loss(prediction.float(), noise)


def autoencoder_loss(side: "TorchSide", model: Any) -> Any:
    """Mean absolute error and the KL term for each value of the picture."""
    image = side.inputs["sample"]
    posterior = model.encode(image).latent_dist
    reconstruction = model.decode(posterior.mean + posterior.std * side.inputs["noise"]).sample
    regulariser = side.task["training"]["kl_weight"] * posterior.kl().mean() / image[0].numel()
    return (reconstruction.float() - image).abs().mean() + regulariser


class Training:
    """A training step, and what it goes on from."""

    def __init__(self, side: "TorchSide", loss_of: Callable[["TorchSide", Any], Any]) -> None:
        """Make the optimizer and the moving average."""
        self.side, self.loss_of, how = side, loss_of, side.task["training"]
        self.parameters = list(side.model.parameters())
        self.average = [p.detach().clone() for p in self.parameters]
        self.max_grad_norm, self.decay = how["max_grad_norm"], how["ema_decay"]
        self.optimizer = torch.optim.AdamW(
            self.parameters,
            lr=how["learning_rate"],
            betas=(how["beta1"], how["beta2"]),
            eps=how["epsilon"],
            weight_decay=how["weight_decay"],
        )

    def __call__(self) -> tuple[Any, Any]:
        """Take a step; the loss, and the norm of the gradient before it is clipped."""
        rounded = self.side.task["dtype"] == "bfloat16"
        with torch.autocast(self.side.device, torch.bfloat16, enabled=rounded):
            loss = self.loss_of(self.side, self.side.model)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, self.max_grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        with torch.no_grad():
            torch._foreach_lerp_(self.average, self.parameters, 1.0 - self.decay)
        return loss, norm

    def first(self) -> Arrays:
        """What the first steps tell."""
        steps = [self() for _ in range(self.side.task["training"]["check_steps"])]
        return {name: np.array([float(s[i]) for s in steps]) for i, name in enumerate(("loss", "grad_norm"))}


def draw(side: "TorchSide") -> Any:
    """DDIM from the given noise."""
    schedule = side.task["schedule"]
    scheduler: Any = diffusers.DDIMScheduler(
        beta_schedule="scaled_linear", clip_sample=False, timestep_spacing="trailing", **schedule
    )
    scheduler.set_timesteps(side.task["num_sample_steps"], device=side.device)
    z = side.inputs["sample"]
    for t in scheduler.timesteps:
        z = scheduler.step(call_unet(side.model, z, t, side.conditions), t, z).prev_sample
    return z


CALLS: dict[str, Callable[["TorchSide"], Any]] = {
    "sample": draw,
    "encode": lambda side: side.model.encode(side.inputs["sample"]).latent_dist.mean,
    "decode": lambda side: side.model.decode(side.inputs["latents"]).sample,
}
LOSSES: dict[str, Callable[["TorchSide", Any], Any]] = {"train": unet_loss, "train_autoencoder": autoencoder_loss}


class TorchSide:
    """A task on PyTorch's side."""

    def __init__(self, task: dict[str, Any], device: str, compiled: bool) -> None:
        """Keep the task; nothing is read yet."""
        self.task, self.device, self.compiled = task, device, compiled

    def prepare(self) -> dict[str, Any]:
        """Read weights and inputs, and leave compilation to the first call."""
        if self.device == "cuda":  # as jax's default precision does for float32
            torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
        training = self.task["name"] in LOSSES
        dtype = torch.float32 if training else getattr(torch, self.task["dtype"])
        library_class = getattr(diffusers, self.task["torch_class"])
        model = library_class.from_pretrained(self.task["folder"], local_files_only=True)
        self.model = model.to(self.device, dtype).train(training)
        self.read_inputs(dtype)
        if self.compiled:
            for part in (self.model.encoder, self.model.decoder) if hasattr(model, "encoder") else (self.model,):
                part.compile()
        self.step = Training(self, LOSSES[self.task["name"]]) if training else None
        return {"versions": {"torch": torch.__version__, "diffusers": diffusers.__version__}}

    def read_inputs(self, dtype: Any) -> None:
        """Inputs, and among them the conditions, in the type of the computation."""
        with np.load(self.task["inputs"]) as file:
            tensors = {name: torch.from_numpy(x).to(self.device) for name, x in file.items()}
        self.inputs = {name: x.to(dtype) if x.is_floating_point() else x for name, x in tensors.items()}
        self.conditions = {
            name: x for name, x in self.inputs.items() if name not in ("sample", "noise", "timestep", "latents")
        }

    def once(self) -> Any:
        """The work once, without waiting for a GPU."""
        if self.step is not None:
            return self.step()
        with torch.inference_mode():
            return CALLS[self.task["name"]](self)

    def wait(self) -> None:
        """Wait for a GPU."""
        if self.device == "cuda":
            torch.cuda.synchronize()

    def check(self, path: str) -> dict[str, Any]:
        """Leave the results in a file."""
        began = time.perf_counter()
        arrays: Any = self.step.first() if self.step is not None else {"output": self.once().float().cpu().numpy()}
        seconds = time.perf_counter() - began
        np.savez(path, **arrays)
        return {"seconds": seconds}

    def run(self, repeats: int) -> dict[str, Any]:
        """Seconds of the work once, the mean of `repeats` without a pause."""
        began = time.perf_counter()
        for _ in range(repeats):
            self.once()
        self.wait()
        return {"seconds": (time.perf_counter() - began) / repeats}

    def memory(self, anew: bool) -> dict[str, Any]:
        """Largest memory in bytes so far: of the process on a CPU, else of the device."""
        if self.device == "cuda":
            return {"peak": torch.cuda.max_memory_allocated(), "anew": False}
        return {"peak": peak_memory(), "anew": anew and forget_peak()}


def peak_memory() -> int:
    """The most bytes that this process has held at once since it began, or since `forget_peak`."""
    status = Path("/proc/self/status")
    if status.exists():
        lines = (line.split() for line in status.read_text().splitlines())
        return next(int(words[1]) for words in lines if words[0] == "VmHWM:") * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def forget_peak() -> bool:
    """Begin `peak_memory` anew, without what was freed and is still held; False where the system cannot."""
    try:
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
    except (OSError, AttributeError):
        return False
    return True


def main() -> None:
    """Answer questions about the task on the command line."""
    channel = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what libraries print is no answer
    task = json.loads(Path(sys.argv[1]).read_text())
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: task["threads"]])
    torch.set_num_threads(task["threads"])
    torch.manual_seed(0)
    side = TorchSide(task, sys.argv[2], "--compile" in sys.argv[3:])
    for line in sys.stdin:
        values = json.loads(line)
        try:
            reply = {"answer": getattr(side, values.pop("ask"))(**values)}
        except Exception as error:  # whatever it is, the other side must not wait for ever
            reply = {"error": f"{type(error).__name__}: {error}".splitlines()[0]}
        channel.write(json.dumps(reply) + "\n")


if __name__ == "__main__":
    main()
