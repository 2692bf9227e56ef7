from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hwnas.search.dominance import undominated

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]


@st.composite
def numbers(draw: st.DrawFn, costs: int) -> tuple[Floats, Floats]:
    """Scores and costs, with many ties."""
    count = draw(st.integers(0, 40))
    few = draw(st.booleans())
    generator = np.random.default_rng(draw(st.integers(0, 2**32)))
    if few:
        drawn = generator.integers(0, 4, (costs + 1, count)).astype(np.float64)
    else:
        drawn = generator.normal(size=(costs + 1, count))
    return drawn[0], drawn[1:]


@pytest.mark.parametrize("costs", [1, 2])
@given(data=st.data())
def test_what_is_left_is_what_nothing_beats_or_equals(costs: int, data: st.DataObject) -> None:
    scores, spent = data.draw(numbers(costs))
    left = undominated(scores, spent).tolist()
    all_of = [(-score, *each) for score, each in zip(scores, spent.T, strict=True)]
    expected = {
        one
        for one in all_of
        if not any(
            other != one and all(a <= b for a, b in zip(other, one, strict=True))
            for other in all_of
        )
    }
    assert {all_of[place] for place in left} == expected
    assert len(left) == len(expected)  # of equal ones one is left, the first
    assert all(all_of.index(all_of[place]) == place for place in left)
