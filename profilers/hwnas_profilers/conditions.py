"""Whether a round of measuring was disturbed: by other programs, a changed clock, or throttling."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from statistics import median_low

LOAD_LIMIT = 0.25
"""Other programs may take this share of all cores' time."""
CLOCK_LIMIT = 0.05
"""The clock may be this far from what it usually was of late."""
CORE_LIMIT = 0.15
"""A core's throughput may be this much less than in its quietest moments."""
QUIET_SHARE = 0.10
"""Share of the visits that are taken for quiet moments."""
MEMORY_LIMIT = 0.10
"""Memory may be this much slower than in the quietest quarter of this run."""

_REMEMBERED_ROUNDS = 101
"""What is usual is learned from this many rounds: a lasting change of clock is usual after half."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MachineState:
    """The state of a machine's processors at one moment, as `agent.machine_state` reads it.

    Attributes:
        at_ns: Time of the reading.
        cores: Cores that the counters speak of.
        own_ns: Processor time of the measuring process so far.
        busy_ns: Processor time of everything so far; None where it cannot be read.
        tick_ns: What `busy_ns` is exact to; None likewise.
        pilot_ns: Time of one fixed computation, which follows the clock alone.
        temperature_c: Hottest thermal zone; None where there is none.
        clock_mhz: Mean frequency that the system reports; None where it does not.
        throttled: Throttling flags as the board words them; empty where it has none.
        memory_ns: Time of reading some MiB, which follows what others leave of the shared cache.
    """

    at_ns: float
    cores: int
    own_ns: float
    busy_ns: float | None
    tick_ns: float | None
    pilot_ns: float
    temperature_c: float | None
    clock_mhz: float | None
    throttled: str
    memory_ns: float | None = None


def load_of_others(before: MachineState, after: MachineState) -> float | None:
    """Return the share of all cores' time that other programs took between two readings.

    The system counts in ticks; what they leave in doubt is not counted, so that a short round is
    not called disturbed for it.

    Returns:
        A share in [0, 1]; None where the system does not tell.
    """
    if before.busy_ns is None or after.busy_ns is None or after.tick_ns is None:
        return None
    elapsed_ns = after.at_ns - before.at_ns
    if elapsed_ns <= 0:
        return None
    own_ns = after.own_ns - before.own_ns
    others_ns = after.busy_ns - before.busy_ns - own_ns - after.tick_ns
    return min(max(others_ns / (elapsed_ns * after.cores), 0.0), 1.0)


class DisturbanceWatch:
    """Judges rounds by readings at both of their ends."""

    def __init__(self) -> None:
        self._pilots_ns: deque[float] = deque(maxlen=_REMEMBERED_ROUNDS)
        self._memory_ns: deque[float] = deque(maxlen=_REMEMBERED_ROUNDS)

    def judge(self, before: MachineState, after: MachineState) -> str:
        """Return why the round between two readings was disturbed; empty where it was not."""
        # Disturbed rounds count too: a lasting change of clock becomes usual after a while, as it
        # must, however long the run was quiet before, or all that follows would be thrown away.
        if not self._pilots_ns:
            self._pilots_ns.append(before.pilot_ns)
        self._pilots_ns.append(after.pilot_ns)
        # One of the readings, not the mean of two: a change in the first rounds would hide in it.
        usual_ns = median_low(self._pilots_ns)
        load = load_of_others(before, after)
        if load is not None and load > LOAD_LIMIT:
            return "load of other programs"
        if after.throttled != before.throttled:
            return "throttling"
        slowest_ns = max(before.pilot_ns, after.pilot_ns)
        fastest_ns = min(before.pilot_ns, after.pilot_ns)
        if slowest_ns > usual_ns * (1 + CLOCK_LIMIT) or fastest_ns < usual_ns * (1 - CLOCK_LIMIT):
            return "change of clock"
        return "busy memory" if self._is_memory_busy(before, after) else ""

    def _is_memory_busy(self, before: MachineState, after: MachineState) -> bool:
        """Tell whether others were at the shared cache, which the load of this machine hides.

        It has a quiet state and busier ones that last for seconds, so it is compared with the quiet
        quarter, not with the middle: that would be either.
        """
        if before.memory_ns is None or after.memory_ns is None:
            return False
        self._memory_ns.append(after.memory_ns)
        ordered = sorted(self._memory_ns)
        quiet_ns = ordered[len(ordered) // 4]
        # Both readings: one alone is as short as an interrupt.
        return min(before.memory_ns, after.memory_ns) > quiet_ns * (1 + MEMORY_LIMIT)
