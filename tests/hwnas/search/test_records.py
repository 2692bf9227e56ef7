from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hwnas.core.decoding import encode_json
from hwnas.core.errors import ConfigError
from hwnas.search.records import SearchRecord, read_search

if TYPE_CHECKING:
    from pathlib import Path

    from hwnas.distill.tutors import TutorSelection
    from hwnas.space.channel.spec import ChannelSpec

LAYERS = ("stem", "block1.expand", "block1.project", "block2.project")
ROWS = ((0.5, 0.3, 0.2), (0.1, 0.8, 0.1), (0.2, 0.3, 0.5), (0.6, 0.2, 0.2))
CHOSEN = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0), (1.0, 0.0, 0.0))


def record_of(spec: ChannelSpec, selection: TutorSelection = "searched") -> SearchRecord:
    return SearchRecord(
        space=spec,
        target="onnxruntime-cpu",
        budget_ms=1.0,
        expected_ms=0.9,
        log_probabilities=(),
        tutor_probabilities=ROWS,
        student_layers=LAYERS,
        teacher_layers=("first", "middle", "last"),
        attention_size=4,
        seed=0,
        selection=selection,
    )


@given(indices=st.lists(st.integers(0, len(LAYERS) - 1), max_size=6))
def test_a_derived_network_gets_the_tutors_of_the_layers_it_has(
    small_spec: ChannelSpec, indices: list[int]
) -> None:
    layers = [LAYERS[index] for index in indices]
    searched = record_of(small_spec).tutor_weights_of(layers)
    assert searched == tuple(CHOSEN[index] for index in indices)
    uniform = record_of(small_spec, "uniform").tutor_weights_of(layers)
    assert uniform == tuple(ROWS[index] for index in indices)


def test_a_layer_that_the_search_does_not_know_is_refused(small_spec: ChannelSpec) -> None:
    record = record_of(small_spec)
    with pytest.raises(ConfigError, match=r"chose no tutor for block1\.expnd") as caught:
        record.tutor_weights_of(["stem", "block1.expnd"])
    assert caught.value.hint == "did you mean `block1.expand`?"
    with pytest.raises(ConfigError, match="among those of its supernet") as caught:
        record.tutor_weights_of(["xyz"])
    assert caught.value.hint == f"it has {', '.join(LAYERS)}"


@pytest.mark.parametrize(
    ("probabilities", "evenness"),
    [
        (((0.5, 0.5), (0.25,) * 4), 1.0),
        (((0.5, 0.5), (1.0,)), 1.0),  # where there is nothing to choose nothing counts
        (((0.5, 0.5), (1 - 3e-9, 1e-9, 1e-9, 1e-9)), 1 / 3),  # of log 2 + log 4
        (((1.0,),), 0.0),
        ((), 0.0),
    ],
)
def test_how_even_the_choices_were_left(
    small_spec: ChannelSpec, probabilities: tuple[tuple[float, ...], ...], evenness: float
) -> None:
    logs = tuple(tuple(map(math.log, row)) for row in probabilities)
    record = replace(
        record_of(small_spec), log_probabilities=logs, tutor_probabilities=probabilities
    )
    assert record.choice_evenness == pytest.approx(evenness, abs=1e-6)
    assert record.tutor_evenness == pytest.approx(evenness, abs=1e-6)
    assert replace(record, selection="uniform").tutor_evenness == 0.0


def test_a_record_is_read_as_it_was_written(small_spec: ChannelSpec, tmp_path: Path) -> None:
    record = record_of(small_spec, "none")
    (tmp_path / "search.json").write_bytes(encode_json(record))
    assert read_search(tmp_path / "search.json") == record
