"""Images and lines hold every point of an interval, and are as tight as they claim."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hwnas.robustness.bounds.elementwise import (
    ABSOLUTE,
    HARDSIGMOID,
    HARDSWISH,
    RELU,
    RELU6,
    SIGMOID,
    PiecewiseLinear,
)
from hwnas.robustness.bounds.hardswish import hardswish_ball

if TYPE_CHECKING:
    from torch import Tensor


FUNCTIONS = {
    "relu": RELU,
    "relu6": RELU6,
    "hardsigmoid": HARDSIGMOID,
    "abs": ABSOLUTE,
    "hardswish": HARDSWISH,
    "sigmoid": SIGMOID,
    "at least 0.5": PiecewiseLinear(lambda at: at.clamp(min=0.5), convex=0.5),
    "at most -1": PiecewiseLinear(lambda at: at.clamp(max=-1.0), concave=-1.0),
}
ROUNDING = 1e-9
GRID = 401

few = settings(max_examples=25)
ends = st.floats(-12.0, 12.0)
wide = st.floats(0.1, 20.0)
any_width = st.one_of(st.just(0.0), st.floats(1e-9, 1e-3), wide)


def intervals(widths: st.SearchStrategy[float]) -> st.SearchStrategy[tuple[Tensor, Tensor]]:
    """Several intervals at once: (intervals,) lower and upper ends."""

    def build(pairs: list[tuple[float, float]]) -> tuple[Tensor, Tensor]:
        lower, width = torch.tensor(pairs, dtype=torch.float64).T
        return lower, lower + width

    return st.lists(st.tuples(ends, widths), min_size=1, max_size=20).map(build)


def points_within(lower: Tensor, upper: Tensor) -> Tensor:
    """(points, intervals), both ends among them."""
    return torch.lerp(lower, upper, torch.linspace(0.0, 1.0, GRID, dtype=lower.dtype)[:, None])


@pytest.mark.parametrize("name", FUNCTIONS)
@few
@given(ends=intervals(any_width))
def test_images_and_lines_hold_every_point(name: str, ends: tuple[Tensor, Tensor]) -> None:
    function = FUNCTIONS[name]
    points = points_within(*ends)
    values = function.value(points)
    least, most = function.image(*ends)
    assert (values >= least - ROUNDING).all()
    assert (values <= most + ROUNDING).all()
    slope_below, below, slope_above, above = function.lines(*ends)
    assert (values >= slope_below * points + below - ROUNDING).all()
    assert (values <= slope_above * points + above + ROUNDING).all()


@pytest.mark.parametrize("name", FUNCTIONS)
@few
@given(ends=intervals(wide))
def test_what_bounds_is_touched(name: str, ends: tuple[Tensor, Tensor]) -> None:
    # A sound but loose bound would be further off than the grid is coarse.
    function = FUNCTIONS[name]
    points = points_within(*ends)
    values = function.value(points)
    coarse = 2.0 * (ends[1] - ends[0]) / (GRID - 1)
    least, most = function.image(*ends)
    assert (values.amin(0) - least <= coarse).all()
    assert (most - values.amax(0) <= coarse).all()
    slope_below, below, slope_above, above = function.lines(*ends)
    assert ((values - slope_below * points - below).amin(0) <= coarse).all()
    assert ((slope_above * points + above - values).amin(0) <= coarse).all()


@pytest.mark.parametrize("name", ["relu", "relu6", "hardsigmoid", "abs", "hardswish"])
@few
@given(ends=intervals(wide))
def test_no_other_slope_encloses_less(name: str, ends: tuple[Tensor, Tensor]) -> None:
    function = FUNCTIONS[name]
    middle = (ends[0] + ends[1]) / 2
    slope_below, below, slope_above, above = function.lines(*ends)
    slopes = torch.linspace(-1.5, 2.0, 71, dtype=torch.float64)[:, None]
    least = function.intercept(torch.minimum, slopes, *ends)
    most = function.intercept(torch.maximum, slopes, *ends)
    assert (slopes * middle + least <= slope_below * middle + below + ROUNDING).all()
    assert (slopes * middle + most >= slope_above * middle + above - ROUNDING).all()


@pytest.mark.parametrize("name", FUNCTIONS)
def test_lines_of_a_point_are_exact_and_have_finite_gradients(name: str) -> None:
    function = FUNCTIONS[name]
    at = torch.tensor([-4.0, -3.0, -1.5, 0.0, 0.5, 3.0, 6.0, 9.0], dtype=torch.float64)
    lower = at.clone().requires_grad_()
    for upper in (lower, lower + 4.0):
        lines = function.lines(lower, upper)
        (gradient,) = torch.autograd.grad(torch.stack(lines).sum(), lower)
        assert gradient.isfinite().all()
    slope_below, below, slope_above, above = function.lines(at, at)
    torch.testing.assert_close(slope_below * at + below, function.value(at))
    torch.testing.assert_close(slope_above * at + above, function.value(at))


def test_relu_has_the_lines_of_crown() -> None:
    lower = torch.tensor([-1.0, -3.0, 1.0, -2.0], dtype=torch.float64)
    upper = torch.tensor([3.0, 1.0, 2.0, -1.0], dtype=torch.float64)
    slope_below, below, slope_above, above = RELU.lines(lower, upper)
    assert slope_below.tolist() == [1.0, 0.0, 1.0, 0.0]
    assert below.tolist() == [0.0, 0.0, 0.0, 0.0]
    assert slope_above.tolist() == [0.75, 0.25, 1.0, 0.0]
    assert above.tolist() == [0.75, 0.75, 0.0, 0.0]


def test_hardswish_knows_that_it_falls() -> None:
    least, most = HARDSWISH.image(torch.tensor([-3.0, -1.0]), torch.tensor([-1.0, 1.0]))
    assert least.tolist() == pytest.approx([-0.375, -1 / 3])
    assert most.tolist() == pytest.approx([0.0, 2 / 3])


@few
@given(ends=intervals(any_width))
def test_hardswish_of_a_ball_is_that_of_its_ends(ends: tuple[Tensor, Tensor]) -> None:
    center, radius = (ends[0] + ends[1]) / 2, (ends[1] - ends[0]) / 2
    least, most = HARDSWISH.image(*ends)
    found_center, found_radius = hardswish_ball(center, radius)
    torch.testing.assert_close(found_center, (least + most) / 2)
    torch.testing.assert_close(found_radius, (most - least) / 2)


def test_hardswish_of_a_ball_has_the_gradients_of_its_formula() -> None:
    generator = torch.Generator().manual_seed(0)
    center = 4.0 * torch.randn(200, generator=generator, dtype=torch.float64)
    radius = 2.0 * torch.rand(200, generator=generator, dtype=torch.float64)
    assert torch.autograd.gradcheck(
        hardswish_ball, (center.requires_grad_(), radius.requires_grad_())
    )
