"""Exporting operators to ONNX with batch normalization folded before, and left to the exporter."""

from __future__ import annotations

from typing import TYPE_CHECKING
from unittest import mock

from _results import compare

from hwnas.space.channel.space import ChannelSpace
from hwnas.space.channel.spec import CHANNEL_SPACES
from hwnas_export import onnx_export

if TYPE_CHECKING:
    from collections.abc import Callable

OPERATORS = 12


def main() -> None:
    """Export the first operators of a space together, both ways, and one by one."""
    operators = ChannelSpace(CHANNEL_SPACES["rnas-cl-xs"]).operators()[:OPERATORS]
    modules = [operator.build() for operator in operators]
    shapes = [operator.input_shape for operator in operators]

    def together() -> object:
        return onnx_export.onnx_from_modules(modules, shapes)

    def one_by_one() -> object:
        return [
            onnx_export.onnx_from_module(module, shape)
            for module, shape in zip(modules, shapes, strict=True)
        ]

    def unfolded(export: Callable[[], object]) -> Callable[[], object]:
        def call() -> object:
            with mock.patch.object(onnx_export, "folded_copy", lambda module: module):
                return export()

        return call

    compare(
        "export_folding",
        {
            "one by one, unfolded": unfolded(one_by_one),
            "one by one, folded": one_by_one,
            "together, unfolded": unfolded(together),
            "together, folded": together,
        },
        baseline="one by one, unfolded",
        samples=7,
        facts={"space": "rnas-cl-xs", "operators": OPERATORS},
    )


if __name__ == "__main__":
    main()
