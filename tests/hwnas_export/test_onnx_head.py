"""Which nodes give the logits."""

from __future__ import annotations

import torch
from torch import nn

from hwnas_export.onnx_export import onnx_from_module
from hwnas_export.onnx_head import head_nodes


class Averaged(nn.Module):
    """Two networks whose logits are averaged."""

    def __init__(self) -> None:
        super().__init__()
        self.members = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5)
            )
            for _ in range(2)
        )

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        first, second = (member(images) for member in self.members)
        mean: torch.Tensor = (first + second) / 2
        return mean


def kinds(module: nn.Module) -> list[str]:
    model = onnx_from_module(module, (1, 3, 8, 8), dynamic_batch=True)
    return [node.op_type for node in head_nodes(model)]


def test_of_a_classifier_it_is_the_last_linear_layer() -> None:
    layers = [nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 9), nn.Linear(9, 5)]
    assert kinds(nn.Sequential(*layers)) == ["Gemm"]


def test_of_averaged_logits_it_is_each_members_and_the_average() -> None:
    found = kinds(Averaged())
    assert found.count("Gemm") == 2
    assert "Conv" not in found
    assert {"Add", "Div"} <= set(found) or {"Add", "Mul"} <= set(found)


def test_of_a_fully_convolutional_network_it_is_the_last_convolution_and_the_pooling() -> None:
    module = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 5, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    )
    found = kinds(module)
    assert found[0] == "Conv"
    assert found.count("Conv") == 1
    assert len(found) > 1
