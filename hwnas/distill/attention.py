"""Attention maps of layers, and how far a student's are from a teacher's.

References:
    Nath et al., RNAS-CL (arXiv 2301.08092), the cross-layer attention loss. Departures: each map is
    normalized per sample (the released code normalizes over the batch), the squared distance is
    used (as the paper has it, the code takes its root), and it is averaged over the batch.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import torch
from torch.nn import functional

from hwnas.space.energy import channel_energy

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor


def attention_maps(features: Sequence[Tensor], size: int) -> Tensor:
    """Compute where each layer's activations are, as unit vectors of one common size.

    A layer's map is the sum over channels of its squared activations, resized bilinearly.

    Args:
        features: One (batch, channels, height, width) tensor per layer.
        size: Height and width of the common map.

    Returns:
        (batch, layers, size * size); every vector has length 1 (or 0, where a layer is all zero).
    """
    return maps_of_energies([channel_energy(activation) for activation in features], size)


def maps_of_energies(energies: Sequence[Tensor], size: int) -> Tensor:
    """Bring layers' energies to unit vectors of one common size.

    Args:
        energies: One (batch, height, width) tensor per layer: see `channel_energy`.
        size: Height and width of the common map.

    Returns:
        As `attention_maps`.
    """
    maps = []
    with _full_precision(energies[0]):
        # Neighbors are mostly of one size: they are resized at once.
        for shape, group in itertools.groupby(energies, key=lambda energy: energy.shape[-2:]):
            stacked = torch.stack(tuple(group), dim=1)  # (B, L, H, W)
            maps.append(
                _resized(stacked, size).flatten(2) if shape != (size, size) else stacked.flatten(2)
            )
        return functional.normalize(torch.cat(maps, dim=1), dim=2)


def attention_distances(student: Tensor, teacher: Tensor) -> Tensor:
    """Compute the mean squared distance of every student map from every teacher map.

    As ||s - t||^2 = ||s||^2 + ||t||^2 - 2 s.t, all pairs cost one product of matrices.

    Args:
        student: (batch, student layers, positions)
        teacher: (batch, teacher layers, positions)

    Returns:
        (student layers, teacher layers), averaged over the batch; at least 0.
    """
    with _full_precision(student):
        products = torch.bmm(student, teacher.mT).mean(0)
        student_norms = student.square().sum(2).mean(0)[:, None]
        teacher_norms = teacher.square().sum(2).mean(0)[None, :]
        return student_norms + teacher_norms - 2.0 * products


def attention_loss(distances: Tensor, weights: Tensor) -> Tensor:
    """Weigh the distances by each student layer's choice of tutor.

    Args:
        distances: (student layers, teacher layers)
        weights: The same shape; each row sums to 1.

    Returns:
        A scalar: the weighted sum over all pairs, divided by their number (1/(n_s n_t)).
    """
    return (weights * distances).mean()


def _resized(maps: Tensor, size: int) -> Tensor:
    """Resize (..., height, width) bilinearly, as `interpolate` does without `align_corners`.

    Two products of matrices are several times as fast as `interpolate` and its backward are, which
    on a GPU is not even deterministic.
    """
    rows, columns = (
        functional.interpolate(
            torch.eye(side, dtype=maps.dtype, device=maps.device)[:, None], size=size, mode="linear"
        )[:, 0]
        for side in maps.shape[-2:]
    )  # (side, size)
    return rows.mT @ (maps @ columns)


def _full_precision(tensor: Tensor) -> torch.autocast:
    """Leave autocast, which would round products of matrices; distances are small differences."""
    return torch.autocast(tensor.device.type, enabled=False)
