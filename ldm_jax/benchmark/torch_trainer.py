"""The PyTorch baseline of a second stage, a program of its own: diffusers' U-Net trained as its users train it.

    python torch_trainer.py TASK.json

It takes latents, schedule and settings from a task, begins from PyTorch's own random weights, and leaves the averaged
weights in a .safetensors under diffusers' names, with the table of classes as `classes`. Nothing imports it. Its random
numbers are PyTorch's: data, steps, batch and optimizer are the same as on the other side, noise and order are not.
"""

# pyright: reportMissingImports=false, reportPrivateImportUsage=false

import json
import logging
import math
import sys
import time
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
from safetensors.torch import save_file

logger = logging.getLogger("torch_trainer")


class Baseline:
    """A U-Net, a table of classes where there are some, and what they learn from."""

    def __init__(self, task: dict[str, Any]) -> None:
        """Make the networks and read the arrays."""
        self.task, self.how = task, task["training"]
        torch.manual_seed(task["seed"])
        self.draw = torch.Generator().manual_seed(task["seed"])
        library_class = getattr(diffusers, task["unet"]["_class_name"])
        self.unet = library_class.from_config(task["unet"]).train()
        classes = task["classes"]
        self.table = None if classes is None else torch.nn.Embedding(classes["entries"], classes["width"])
        with np.load(task["arrays"]) as file:
            self.arrays = {name: torch.from_numpy(values) for name, values in file.items()}
        self.modules = [module for module in (self.unet, self.table) if module is not None]
        self.parameters = [p for module in self.modules for p in module.parameters()]
        self.average = [p.detach().clone() for p in self.parameters]
        self.order = torch.empty(0, dtype=torch.long)

    def rows(self) -> Any:
        """Numbers of the next batch: every picture once before one comes again."""
        size = self.how["batch_size"]
        while len(self.order) < size:
            epoch = torch.randperm(len(self.arrays["moments"]), generator=self.draw)
            self.order = torch.cat([self.order, epoch])
        rows, self.order = self.order[:size], self.order[size:]
        return rows

    def loss(self, rows: Any) -> Any:
        """Mean squared error of what is predicted, at random times."""
        moments, count = self.arrays["moments"][rows], len(rows)
        side = torch.randint(moments.shape[1], (count,), generator=self.draw)
        mean, logvar = moments[torch.arange(count), side].chunk(2, dim=1)
        z = mean + torch.exp(0.5 * logvar) * self.normal(mean)
        z0 = (z - self.arrays["mean"].view(1, -1, 1, 1)) / self.arrays["std"].view(1, -1, 1, 1)
        t = torch.randint(len(self.arrays["alpha"]), (count,), generator=self.draw)
        alpha, sigma = (self.arrays[name][t].view(-1, 1, 1, 1) for name in ("alpha", "sigma"))
        noise = self.normal(z0)
        target = {"epsilon": noise, "v": alpha * noise - sigma * z0, "x0": z0}[self.task["prediction_type"]]
        prediction = self.unet(alpha * z0 + sigma * noise, t, **self.conditions(rows)).sample
        return torch.nn.functional.mse_loss(prediction, target)

    def conditions(self, rows: Any) -> dict[str, Any]:
        """One token for the class, or for no class in a share of the batch."""
        if self.table is None:
            return {}
        labels = self.arrays["labels"][rows]
        dropped = torch.rand(len(rows), generator=self.draw) < self.task["cond_drop_prob"]
        labels = torch.where(dropped, torch.full_like(labels, self.table.num_embeddings - 1), labels)
        return {"encoder_hidden_states": self.table(labels)[:, None]}

    def normal(self, like: Any) -> Any:
        """Standard normal numbers."""
        return torch.randn(like.shape, generator=self.draw)

    def learning_rate(self, step: int) -> float:
        """Share of the peak at a step: warm-up, then the decay."""
        how, warmup = self.task["optimizer"], self.task["optimizer"]["warmup_steps"]
        if step < warmup:
            return (step + 1) / warmup
        done = min((step - warmup) / max(self.how["num_steps"] - warmup, 1), 1.0)
        kept = {"constant": 1.0, "linear": 1 - done, "cosine": 0.5 * (1 + math.cos(math.pi * done))}[how["decay"]]
        ratio = how["final_learning_rate_ratio"]
        return kept if how["decay"] == "constant" else ratio + (1 - ratio) * kept

    def follow(self, step: int) -> None:
        """Let the average follow; its decay rises as ours does."""
        decay, begun = self.how["ema_decay"], step + 1
        decay = min(decay, (1 + begun) / (10 + begun)) if self.how["ema_warmup"] else decay
        with torch.no_grad():
            torch._foreach_lerp_(self.average, [p.detach() for p in self.parameters], 1.0 - decay)

    def train(self) -> dict[str, float]:
        """All steps; the last loss, and seconds of a step without the first ones."""
        how = self.task["optimizer"]
        optimizer = torch.optim.AdamW(
            self.parameters,
            lr=how["learning_rate"],
            betas=(how["beta1"], how["beta2"]),
            eps=how["epsilon"],
            weight_decay=how["weight_decay"],
        )
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, self.learning_rate)
        value, began, first = math.nan, time.perf_counter(), min(10, self.how["num_steps"] - 1)
        for step in range(self.how["num_steps"]):
            began = time.perf_counter() if step == first else began
            loss = self.loss(self.rows())
            loss.backward()
            if how["max_grad_norm"] is not None:
                torch.nn.utils.clip_grad_norm_(self.parameters, how["max_grad_norm"])
            optimizer.step()
            schedule.step()
            optimizer.zero_grad(set_to_none=True)
            self.follow(step)
            if step % 100 == 0:
                logger.info("step %d of %d: loss %.4f", step, self.how["num_steps"], loss.item())
            value = loss.item() if step == self.how["num_steps"] - 1 else value
        seconds = (time.perf_counter() - began) / (self.how["num_steps"] - first)
        return {"loss": value, "seconds_per_step": seconds}

    def save(self, file: str) -> None:
        """The averaged weights."""
        with torch.no_grad():
            for parameter, average in zip(self.parameters, self.average, strict=True):
                parameter.copy_(average)
        tensors = {name: value.contiguous() for name, value in self.unet.state_dict().items()}
        save_file(tensors | ({} if self.table is None else {"classes": self.table.weight.data}), file)


def main() -> None:
    """Train the task on the command line."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    task = json.loads(Path(sys.argv[1]).read_text())
    torch.set_num_threads(task["threads"])
    baseline = Baseline(task)
    told = baseline.train() | {"torch": torch.__version__, "diffusers": diffusers.__version__}
    baseline.save(task["weights"])
    Path(task["told"]).write_text(json.dumps(told))


if __name__ == "__main__":
    main()
