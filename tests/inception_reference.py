"""Inception-v3 in PyTorch's functions, written from torchvision's layer names and the paper's figures: a reference."""

from typing import Any

import torch
import torch.nn.functional as F


def inception(w: dict[str, Any], x: Any, kind: str) -> tuple[Any, Any, Any]:
    """Pooled features, logits and the spatial features, all of one batch."""

    def conv(name: str, x: Any, stride: int = 1, padding: Any = 0) -> Any:
        x = F.conv2d(x, w[f"{name}.conv.weight"], stride=stride, padding=padding)
        names = ("running_mean", "running_var", "weight", "bias")
        return F.relu(F.batch_norm(x, *(w[f"{name}.bn.{n}"] for n in names), eps=0.001))

    def average(x: Any) -> Any:
        return F.avg_pool2d(x, 3, 1, 1, count_include_pad=kind == "torchvision")

    def a(n: str, x: Any) -> Any:
        five = conv(f"{n}.branch5x5_2", conv(f"{n}.branch5x5_1", x), padding=2)
        three = conv(f"{n}.branch3x3dbl_2", conv(f"{n}.branch3x3dbl_1", x), padding=1)
        three = conv(f"{n}.branch3x3dbl_3", three, padding=1)
        return torch.cat([conv(f"{n}.branch1x1", x), five, three, conv(f"{n}.branch_pool", average(x))], 1)

    def c(n: str, x: Any) -> Any:
        seven = conv(f"{n}.branch7x7_2", conv(f"{n}.branch7x7_1", x), padding=(0, 3))
        seven = conv(f"{n}.branch7x7_3", seven, padding=(3, 0))
        double = conv(f"{n}.branch7x7dbl_1", x)
        for i, padding in ((2, (3, 0)), (3, (0, 3)), (4, (3, 0)), (5, (0, 3))):
            double = conv(f"{n}.branch7x7dbl_{i}", double, padding=padding)
        return torch.cat([conv(f"{n}.branch1x1", x), seven, double, conv(f"{n}.branch_pool", average(x))], 1)

    def e(n: str, x: Any, pool: Any) -> Any:
        three = conv(f"{n}.branch3x3_1", x)
        double = conv(f"{n}.branch3x3dbl_2", conv(f"{n}.branch3x3dbl_1", x), padding=1)
        parts = [conv(f"{n}.branch1x1", x)]
        for name, y in (("branch3x3_2", three), ("branch3x3dbl_3", double)):
            parts += [conv(f"{n}.{name}a", y, padding=(0, 1)), conv(f"{n}.{name}b", y, padding=(1, 0))]
        return torch.cat([*parts, conv(f"{n}.branch_pool", pool(x))], 1)

    x = conv("Conv2d_1a_3x3", x, 2)
    x = conv("Conv2d_2b_3x3", conv("Conv2d_2a_3x3", x), padding=1)
    x = conv("Conv2d_4a_3x3", conv("Conv2d_3b_1x1", F.max_pool2d(x, 3, 2)))
    x = F.max_pool2d(x, 3, 2)
    for n in ("Mixed_5b", "Mixed_5c", "Mixed_5d"):
        x = a(n, x)
    n = "Mixed_6a"
    double = conv(f"{n}.branch3x3dbl_2", conv(f"{n}.branch3x3dbl_1", x), padding=1)
    x = torch.cat([conv(f"{n}.branch3x3", x, 2), conv(f"{n}.branch3x3dbl_3", double, 2), F.max_pool2d(x, 3, 2)], 1)
    for n in ("Mixed_6b", "Mixed_6c"):
        x = c(n, x)
    spatial = conv("Mixed_6d.branch1x1", x)[:, :7].permute(0, 2, 3, 1).flatten(1)
    x = c("Mixed_6e", c("Mixed_6d", x))
    n = "Mixed_7a"
    three = conv(f"{n}.branch3x3_2", conv(f"{n}.branch3x3_1", x), 2)
    seven = conv(f"{n}.branch7x7x3_2", conv(f"{n}.branch7x7x3_1", x), padding=(0, 3))
    seven = conv(f"{n}.branch7x7x3_4", conv(f"{n}.branch7x7x3_3", seven, padding=(3, 0)), 2)
    x = torch.cat([three, seven, F.max_pool2d(x, 3, 2)], 1)
    last = average if kind == "torchvision" else lambda x: F.max_pool2d(x, 3, 1, 1)
    pooled = e("Mixed_7c", e("Mixed_7b", x, average), last).mean((2, 3))
    return pooled, F.linear(pooled, w["fc.weight"], w.get("fc.bias")), spatial
