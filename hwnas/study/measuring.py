"""Measuring a study's networks at its end, side by side, where nothing else computes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from hwnas.core.artifacts import write_atomically
from hwnas.core.decoding import encode_json
from hwnas.core.errors import ExportError, TargetError
from hwnas.core.time_limit import stop_if_time_is_up
from hwnas.search.records import read_derivation
from hwnas.space.registry import space_from_spec
from hwnas.study.collect import architecture_of
from hwnas.study.gather import LATENCY_FILE, read_sessions
from hwnas.study.handcrafted import read_card
from hwnas.study.latency import is_here, time_side_by_side
from hwnas_profilers.table import LatencyTable
from hwnas_profilers.targets import parse_target
from hwnas_profilers.workload import Workload

if TYPE_CHECKING:
    from collections.abc import Sequence

    from hwnas.core.progress import Progress
    from hwnas.study.latency import Session
    from hwnas.study.workshop import Goal


def measure_networks(
    goals: Sequence[Goal], out: Path, *, may_stop: bool, progress: Progress
) -> None:
    """Time all networks of each target in one session, unless they were.

    What cannot be measured here is said and left out: a study may be trained on one machine and
    measured, by the same command, on another.

    Args:
        goals: Arms and seeds whose work is done.
        out: Folder of the study.
        may_stop: Whether a time limit counts: not where nothing else was done in this run.
        progress: Where to report.

    Raises:
        UnfinishedError: The time limit that holds is over.
    """
    groups: dict[tuple[str, int], list[Goal]] = {}
    for goal in goals:
        if goal.arm.kind != "teacher":
            target = goal.config.target
            groups.setdefault((target.name, target.threads), []).append(goal)
    sessions = {(each.target, each.threads): each for each in read_sessions(out)}
    for place, members in groups.items():
        networks = {architecture_of(goal): goal for goal in members}
        before = sessions.get(place)
        if before is not None and before.networks.keys() >= networks.keys():
            continue
        session = _session(networks, place, may_stop=may_stop, progress=progress)
        if session is not None:
            sessions[place] = session
            content = encode_json(tuple(sessions.values()), indent=1)
            write_atomically(out / LATENCY_FILE, content)


def _session(
    networks: dict[str, Goal], place: tuple[str, int], *, may_stop: bool, progress: Progress
) -> Session | None:
    """Time the networks of a target; None where that cannot be done here."""
    target, threads = place
    elsewhere = next((table for table in _tables(networks) if not is_here(table)), None)
    if elsewhere is not None:
        progress.say(
            f"study: latencies are not measured here: {elsewhere.path} is of "
            f"{elsewhere.header.provenance.device.name}; run the same command there"
        )
        return None
    if may_stop:
        stop_if_time_is_up("the study")
    progress.say(f"study: {len(networks)} networks are timed side by side on {target}")
    workloads = {name: _workload(name, goal) for name, goal in networks.items()}
    settings = next(iter(networks.values())).config.table.network_timing
    try:
        return time_side_by_side(workloads, target, threads, settings, progress)
    except (TargetError, ExportError) as error:
        progress.say(f"study: latencies are not measured: {error.message}")
        return None


def _tables(networks: dict[str, Goal]) -> list[LatencyTable]:
    """Return the latency tables behind networks, each once."""
    paths: dict[Path, None] = {}
    for goal in networks.values():
        given = goal.config.table.path
        if goal.genotype is not None:
            paths[Path(given) if given else goal.stages["table"].path] = None
    return [LatencyTable.read(path) for path in paths]


def _workload(name: str, goal: Goal) -> Workload:
    """Return a network as something to be timed; its weights are of no account."""
    if goal.genotype is None:
        card = read_card(goal.trained.path)
        return Workload(name=name, build=card.build, input_shape=(1, *card.image_shape))
    derivation = read_derivation(goal.genotype.path)
    dtype = parse_target(goal.config.target.name).runtime.precision
    return space_from_spec(derivation.space, dtype=dtype).workload(derivation.genotype)
