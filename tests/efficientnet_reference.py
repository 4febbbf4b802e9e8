"""EfficientNet-Lite0 in PyTorch's functions, with the names of EfficientNet-PyTorch: a reference."""

from typing import Any

import torch.nn.functional as F

KERNELS = (3, 3, 3, 5, 5, 3, 3, 3, 5, 5, 5, 5, 5, 5, 5, 3)
STRIDES = (1, 2, 1, 2, 1, 2, 1, 1, 1, 1, 1, 2, 1, 1, 1, 1)


def efficientnet_lite0(w: dict[str, Any], x: Any) -> Any:
    """The means behind the head."""

    def same(x: Any, side: int, stride: int) -> Any:
        rows, columns = (max((-(-n // stride) - 1) * stride + side - n, 0) for n in x.shape[2:])
        return F.pad(x, (columns // 2, columns - columns // 2, rows // 2, rows - rows // 2))

    def norm(name: str, x: Any) -> Any:
        names = ("running_mean", "running_var", "weight", "bias")
        return F.batch_norm(x, *(w[f"{name}.{n}"] for n in names), eps=0.001)

    x = F.relu6(norm("_bn0", F.conv2d(same(x, 3, 2), w["_conv_stem.weight"], stride=2)))
    for i, (side, stride) in enumerate(zip(KERNELS, STRIDES, strict=True)):
        name, y = f"_blocks.{i}", x
        if f"{name}._expand_conv.weight" in w:
            y = F.relu6(norm(f"{name}._bn0", F.conv2d(y, w[f"{name}._expand_conv.weight"])))
        y = F.conv2d(same(y, side, stride), w[f"{name}._depthwise_conv.weight"], stride=stride, groups=y.shape[1])
        y = norm(f"{name}._bn2", F.conv2d(F.relu6(norm(f"{name}._bn1", y)), w[f"{name}._project_conv.weight"]))
        x = x + y if x.shape == y.shape else y
    return F.relu6(norm("_bn1", F.conv2d(x, w["_conv_head.weight"]))).mean((2, 3))
