"""A cell space so small that its whole loop takes seconds."""

from __future__ import annotations

from hwnas.space.cells.spec import CellSpec

CELLS = CellSpec(
    name="few-cells",
    image_shape=(1, 8, 8),
    classes=10,
    cells=3,
    channels=4,
    nodes=2,
    operations=("none", "skip", "sep3"),
)
