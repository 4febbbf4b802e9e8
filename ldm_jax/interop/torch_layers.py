"""The PyTorch side of `ldm parity --layers`, a program of its own: what each layer of the original puts out.

    python torch_layers.py FOLDER EXCHANGE CLASS DTYPE[,DTYPE] [--gradient]

It is the one file of the package that imports torch, diffusers and transformers, and nothing imports it: it is run by
`torch_process`, and all that passes between the two are files in the folder EXCHANGE, `inputs.npz` in and one
`DTYPE.npz` for each type of numbers out. Their arrays are, in this order,

    layer/NAME        output of a module with parameters, as [batch, positions, channels], in the order of completion
    output/NAME       output of the model, in PyTorch's layout
    cotangent/NAME    random numbers v, one for each number of an output
    parameter/NAME    gradient (1) with respect to a parameter, those of the last module first, as the gradient runs
    input/NAME        gradient (1) with respect to an input

(1) d/dx sum_o <output_o, v_o>
"""

# pyright: reportMissingImports=false

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
import transformers

Arrays = dict[str, np.ndarray]
Tensors = dict[str, Any]


def call_unet(model: Any, inputs: Tensors) -> Tensors:
    """The prediction of either U-Net."""
    added = {name: inputs[name] for name in ("text_embeds", "time_ids") if name in inputs}
    others = {name: x for name, x in inputs.items() if name not in added}
    return {"sample": model(**others, **({"added_cond_kwargs": added} if added else {})).sample}


def call_autoencoder_kl(model: Any, inputs: Tensors) -> Tensors:
    """The moments of a picture, and the picture of other latents."""
    posterior = model.encode(inputs["sample"]).latent_dist
    reconstruction = model.decode(inputs["latents"]).sample
    return {"mean": posterior.mean, "logvar": posterior.logvar, "reconstruction": reconstruction}


def call_autoencoder_vq(model: Any, inputs: Tensors) -> Tensors:
    """The latents of a picture, and the picture of others as they are: which code is nearest jumps, and is no layer."""
    latents = model.encode(inputs["sample"]).latents
    return {"latents": latents, "reconstruction": model.decode(inputs["latents"], force_not_quantize=True).sample}


def call_text(model: Any, inputs: Tensors) -> Tensors:
    """The outputs of CLIP's text transformer."""
    outputs = model(input_ids=inputs["input_ids"])
    pooled = "text_embeds" if "text_embeds" in outputs else "pooler_output"
    return {"last_hidden_state": outputs["last_hidden_state"], pooled: outputs[pooled]}


CLASSES: dict[str, tuple[Any, Callable[[Any, Tensors], Tensors]]] = {
    "UNet2DModel": (diffusers, call_unet),
    "UNet2DConditionModel": (diffusers, call_unet),
    "AutoencoderKL": (diffusers, call_autoencoder_kl),
    "VQModel": (diffusers, call_autoencoder_vq),
    "CLIPTextModel": (transformers, call_text),
    "CLIPTextModelWithProjection": (transformers, call_text),
}


def numbers(tensor: Any) -> np.ndarray:
    """A copy of a tensor, which later layers may write over, as numpy has it: bfloat16 as float32."""
    tensor = tensor.detach().clone()
    return (tensor.float() if tensor.is_floating_point() else tensor).numpy()


def as_positions(module: Any, output: Any) -> np.ndarray:
    """A module's output as [batch, positions, channels]: what puts channels first is known by its kind or by 4 axes."""
    first = isinstance(module, torch.nn.Conv2d | torch.nn.GroupNorm) or output.ndim == 4
    values = numbers(output.movedim(1, -1) if first and output.ndim > 2 else output)
    return values.reshape(values.shape[0], -1, values.shape[-1])


def record(model: Any, layers: Arrays) -> list[Any]:
    """Let every module with parameters leave its output, or the first of several, in `layers`; returns the hooks."""

    def hook_of(name: str) -> Callable[[Any, Any, Any], None]:
        def hook(module: Any, _: Any, output: Any) -> None:
            output = output[0] if isinstance(output, tuple) else output
            if isinstance(output, torch.Tensor) and output.ndim > 1:
                layers[name] = as_positions(module, output)

        return hook

    parts = {name: module for name, module in model.named_modules() if name}
    trained = {name: module for name, module in parts.items() if next(module.parameters(), None) is not None}
    return [module.register_forward_hook(hook_of(name)) for name, module in trained.items()]


def backward_order(model: Any, layers: Arrays) -> list[str]:
    """Names of all parameters: those of the module that ended last first, those of modules that did not run last."""
    order = {name: place for place, name in enumerate(layers)}
    names = [name for name, _ in model.named_parameters()]
    return sorted(names, key=lambda name: -order.get(name.rpartition(".")[0], -1))


def gradients(model: Any, inputs: Tensors, outputs: Tensors, layers: Arrays) -> Arrays:
    """The cotangents and the gradients (1); what the outputs do not depend on has a gradient of zeros."""
    draw = np.random.default_rng(1)
    v = {name: draw.standard_normal(x.shape, np.float32) for name, x in outputs.items()}
    torch.stack([(x.float() * torch.from_numpy(v[name])).sum() for name, x in outputs.items()]).sum().backward()
    parameters = dict(model.named_parameters())
    ordered = {f"parameter/{name}": parameters[name] for name in backward_order(model, layers)}
    ordered |= {f"input/{name}": x for name, x in inputs.items() if x.is_floating_point()}
    found = {name: numbers(torch.zeros_like(x) if x.grad is None else x.grad) for name, x in ordered.items()}
    return {**{f"cotangent/{name}": values for name, values in v.items()}, **found}


def as_tensor(values: np.ndarray, dtype: Any, gradient: bool) -> Any:
    """An input: floating-point numbers in the type of the computation, whole numbers as they are."""
    tensor = torch.from_numpy(values)
    return tensor.to(dtype).requires_grad_(gradient) if tensor.is_floating_point() else tensor


def run(model: Any, call: Callable[[Any, Tensors], Tensors], arrays: Arrays, dtype: Any, gradient: bool) -> Arrays:
    """Everything that is recorded of one pass, by the names above."""
    model.zero_grad()
    inputs = {name: as_tensor(values, dtype, gradient) for name, values in arrays.items()}
    layers: Arrays = {}
    hooks = record(model, layers)
    with torch.set_grad_enabled(gradient):
        outputs = call(model, inputs)
    for hook in hooks:
        hook.remove()
    found = {f"layer/{name}": values for name, values in layers.items()}
    found |= {f"output/{name}": numbers(x) for name, x in outputs.items()}
    return {**found, **(gradients(model, inputs, outputs, layers) if gradient else {})}


def main() -> None:
    """Read the command line, run, write."""
    folder, exchange, name, dtypes = sys.argv[1:5]
    library, call = CLASSES[name]
    model = getattr(library, name).from_pretrained(folder, local_files_only=True)
    model = model.to(torch.float32).eval()
    with np.load(Path(exchange) / "inputs.npz") as file:
        arrays = dict(file)
    for dtype in sorted(dtypes.split(","), reverse=True):  # float32 before the weights are rounded to bfloat16
        model = model.to(getattr(torch, dtype))
        found: Any = run(model, call, arrays, getattr(torch, dtype), "--gradient" in sys.argv[5:])
        np.savez(Path(exchange) / f"{dtype}.npz", **found)


if __name__ == "__main__":
    main()
