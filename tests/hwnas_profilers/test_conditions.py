from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hwnas_profilers import conditions
from hwnas_profilers.agent import machine_state
from hwnas_profilers.conditions import (
    CLOCK_LIMIT,
    LOAD_LIMIT,
    DisturbanceWatch,
    MachineState,
    load_of_others,
)

SECOND_NS = 1_000_000_000
TICK_NS = 10_000_000
BEGIN = MachineState(
    at_ns=5 * SECOND_NS,
    cores=4,
    own_ns=3 * SECOND_NS,
    busy_ns=900 * SECOND_NS,
    tick_ns=4 * TICK_NS,
    pilot_ns=8_000,
    temperature_c=None,
    clock_mhz=None,
    throttled="",
)


def after_one_second(
    state: MachineState, *, own: float = 1.0, others: float = 0.0, pilot_ns: float = 8_000
) -> MachineState:
    """Let a second pass in which this process and others used so many cores."""
    assert state.busy_ns is not None
    return replace(
        state,
        at_ns=state.at_ns + SECOND_NS,
        own_ns=state.own_ns + own * SECOND_NS,
        busy_ns=state.busy_ns + (own + others) * SECOND_NS,
        pilot_ns=pilot_ns,
    )


@pytest.mark.parametrize(
    ("others", "load"),
    [
        (0.0, 0.0),
        (0.04, 0.0),  # within what ticks leave in doubt
        (0.05, 0.0025),
        (1.04, 0.25),
        (2.04, 0.5),
        (4.04, 1.0),
        (9.0, 1.0),  # counters that cannot be: still a share
    ],
)
def test_the_load_of_others_is_their_share_of_all_cores_less_the_ticks_doubt(
    others: float, load: float
) -> None:
    assert load_of_others(BEGIN, after_one_second(BEGIN, others=others)) == pytest.approx(load)


def test_what_this_process_takes_is_no_load_of_others() -> None:
    assert load_of_others(BEGIN, after_one_second(BEGIN, own=4.0)) == 0


@given(
    own=st.floats(0, 4), others=st.floats(0, 4), cores=st.integers(1, 256), ticks=st.integers(0, 20)
)
def test_ticks_only_ever_make_the_load_smaller_and_by_no_more_than_their_doubt(
    own: float, others: float, cores: int, ticks: int
) -> None:
    begin = replace(BEGIN, cores=cores, tick_ns=ticks * TICK_NS)
    load = load_of_others(begin, after_one_second(begin, own=own, others=others))
    assert load is not None
    true = min(others / cores, 1.0)
    doubt = ticks * TICK_NS / (SECOND_NS * cores)
    assert true - doubt - 1e-6 <= load <= true + 1e-6
    assert 0 <= load <= 1


def test_a_load_that_cannot_be_known_is_none() -> None:
    end = after_one_second(BEGIN)
    for unread in ({"busy_ns": None}, {"tick_ns": None}, {"at_ns": BEGIN.at_ns}):
        assert load_of_others(BEGIN, replace(end, **unread)) is None
    assert load_of_others(replace(BEGIN, busy_ns=None), end) is None
    assert load_of_others(end, BEGIN) is None  # the clock ran backward


def test_a_round_is_disturbed_by_more_than_the_limit_of_load() -> None:
    watch = DisturbanceWatch()
    at_limit = LOAD_LIMIT * BEGIN.cores + 0.04
    assert watch.judge(BEGIN, after_one_second(BEGIN, others=at_limit - 0.01)) == ""
    assert watch.judge(BEGIN, after_one_second(BEGIN, others=at_limit + 0.01)) == (
        "load of other programs"
    )


def test_a_machine_that_tells_no_load_is_judged_by_its_clock_alone() -> None:
    watch = DisturbanceWatch()
    begin = replace(BEGIN, busy_ns=None)
    end = replace(begin, at_ns=begin.at_ns + SECOND_NS)
    assert watch.judge(begin, end) == ""
    assert watch.judge(end, replace(end, pilot_ns=9_000)) == "change of clock"


@pytest.mark.parametrize("factor", [1 + 1.2 * CLOCK_LIMIT, 1 - 1.2 * CLOCK_LIMIT])
@pytest.mark.parametrize("at_begin", [True, False])
def test_a_clock_that_changed_at_either_end_disturbs(factor: float, at_begin: bool) -> None:
    watch = DisturbanceWatch()
    usual = after_one_second(BEGIN)
    assert [watch.judge(BEGIN, usual) for _ in range(5)] == [""] * 5
    changed = replace(usual, pilot_ns=factor * usual.pilot_ns)
    begin, end = (
        (replace(BEGIN, pilot_ns=changed.pilot_ns), usual) if at_begin else (BEGIN, changed)
    )
    assert watch.judge(begin, end) == "change of clock"
    assert watch.judge(BEGIN, usual) == ""  # and it is forgotten once it is over


def test_a_clock_that_jitters_within_the_limit_does_not_disturb() -> None:
    watch = DisturbanceWatch()
    for step in (0.0, 0.9, -0.9, 0.5, -0.5):
        end = after_one_second(BEGIN, pilot_ns=8_000 * (1 + step * CLOCK_LIMIT))
        assert watch.judge(BEGIN, end) == ""


@pytest.mark.parametrize("quiet_rounds", [1, 30, 5_000])
def test_a_lasting_change_of_clock_becomes_usual_however_long_the_run_was(
    quiet_rounds: int,
) -> None:
    watch = DisturbanceWatch()
    usual = after_one_second(BEGIN)
    for _ in range(quiet_rounds):
        assert watch.judge(BEGIN, usual) == ""
    slow = replace(usual, pilot_ns=10_000)
    reasons = [watch.judge(slow, slow) for _ in range(conditions._REMEMBERED_ROUNDS)]
    disturbed = reasons.count("change of clock")
    half = conditions._REMEMBERED_ROUNDS / 2
    assert 1 <= disturbed <= half
    assert set(reasons[disturbed:]) == {""}


def test_throttling_that_begins_disturbs_and_one_that_stays_does_not() -> None:
    watch = DisturbanceWatch()
    throttled = replace(after_one_second(BEGIN), throttled="0x4")
    assert watch.judge(BEGIN, throttled) == "throttling"
    assert watch.judge(throttled, throttled) == ""


def test_this_machine_can_be_read() -> None:
    first, second = MachineState(**machine_state()), MachineState(**machine_state())
    assert second.at_ns > first.at_ns
    assert second.own_ns >= first.own_ns
    assert first.pilot_ns > 0
    assert first.cores >= 1
    load = load_of_others(first, second)
    assert load is None or 0 <= load <= 1


def test_memory_is_busy_where_both_readings_are_slower_than_the_quiet_quarter() -> None:
    watch, state = DisturbanceWatch(), replace(BEGIN, memory_ns=40_000.0)
    for _ in range(8):
        before, state = state, after_one_second(state)
        assert watch.judge(before, state) == ""
    slow = replace(after_one_second(state), memory_ns=50_000.0)
    assert watch.judge(state, slow) == ""  # one reading alone is as short as an interrupt
    slower = replace(after_one_second(slow), memory_ns=50_000.0)
    assert watch.judge(slow, slower) == "busy memory"
    quiet = replace(after_one_second(slower), memory_ns=40_500.0)
    assert watch.judge(slower, quiet) == ""
    assert watch.judge(replace(quiet, memory_ns=None), after_one_second(quiet)) == ""
