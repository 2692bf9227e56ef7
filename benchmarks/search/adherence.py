"""Whether derived networks keep their budgets when they are measured again.

    python benchmarks/search/adherence.py [--spaces rnas-cl-s7,mbconv-32] [--budgets 20]
        [--searches FOLDER,FOLDER] [--networks 12] [--holdout 24] [--seed 0]

For each space a table is profiled and calibrated now, on this machine. Then a network is derived
for each of evenly spaced budgets between the fastest and the slowest network, by `hwnas derive`'s
own code: derived, measured, tightened by what it is over. At once it is measured five times more,
a second apart, each time compiled anew; at the end all networks are measured once more,
interleaved.

What is searched for does not matter to whether a budget is kept, so scores are random, with larger
options above smaller ones, so that every budget binds; or those of real searches, whose folders
--searches names in the order of the spaces.

Judged is the middle one of the five measurements, which the derivation did not see:

- over: above the budget by more than the noise floor, which is the 95th percentile, over the
  networks, of how far two of their measurements lie apart (the middle one of all pairs).
  Beyond a floor of 3 % nothing is judged: so loud a machine would excuse any network.
- used: its share of the budget. At least 93 % are asked for where the space allows, which is where
  the budget binds: where the network of the best score overall is predicted beyond it. Of others
  the best is derived already, and a slower one would be worse. Shown too is where the next network
  of the front of score and latency is: what a budget a little wider would have bought.

The machine is shared, and its speed as a whole moves by 2-10 % within minutes, which no derivation
can foresee: so what is judged is measured next to the derivation. `later` is the measurement at the
end, minutes afterward and among all others; it is shown and kept, and not judged.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from _shared import random_scores, say, write_result

from hwnas.core.artifacts import ManifestDraft, new_artifact
from hwnas.core.decoding import encode_json
from hwnas.core.errors import BudgetError
from hwnas.latency.resources import SpaceCosts
from hwnas.search.budget import Budgets
from hwnas.search.front import pareto_front
from hwnas.search.records import SearchRecord, read_search
from hwnas.space.registry import space_from_spec
from hwnas.space.spec import space_spec
from hwnas.stages.calibrate import make_calibration
from hwnas.stages.derive import make_derivation
from hwnas.stages.profile import make_table
from hwnas.stages.search import SEARCH_FILE
from hwnas_profilers.profiler import profiler_for
from hwnas_profilers.table import LatencyTable
from hwnas_profilers.targets import parse_target
from hwnas_profilers.timing import TimingSettings

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from hwnas.search.records import Derivation
    from hwnas.space.chain_space import ChainSpace
    from hwnas_profilers.records import CalibrationRecord
    from hwnas_profilers.workload import Chain

MARGIN = 0.02
"""Budgets begin and end this share of the range inside it."""

ASKED_SHARE = 0.93

AGAIN = 5
PAUSE_S = 1.0
"""Between two measurements: a spell in which others take the machine lasts for some of them."""

LOUDEST_FLOOR = 0.03
"""A noise floor above this hides what is asked: such a run judges nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """One budget and what came of it; latencies in milliseconds.

    Attributes:
        budget_ms: The budget.
        predicted_ms: Of the derived network.
        derived_ms: Measured by the derivation.
        again_ms: Measured again, five times, at once.
        later_ms: Measured at the end, among all others.
        attempts: Networks that were derived and measured.
        binds: Whether the network of the best score overall is predicted beyond the budget.
        next_ms: Predicted latency of the next network of the front; None where there is none.
    """

    budget_ms: float
    predicted_ms: float
    derived_ms: float
    again_ms: tuple[float, ...]
    later_ms: float
    attempts: int
    binds: bool
    next_ms: float | None

    @property
    def share(self) -> float:
        """Share of the budget used, as measured again."""
        return float(np.median(self.again_ms)) / self.budget_ms

    @property
    def noise(self) -> float:
        """How far two measurements lie apart, relative: the middle one of all pairs."""
        pairs = [abs(first - second) for first, second in combinations(self.again_ms, 2)]
        return float(np.median(pairs) / np.median(self.again_ms))


def main() -> None:
    """Measure, print, and write what was measured."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--spaces", default="rnas-cl-s7,mbconv-32")
    parser.add_argument("--searches", default="", help="folders of searches, one per space")
    parser.add_argument("--target", default="onnxruntime-cpu")
    parser.add_argument("--budgets", type=int, default=20)
    parser.add_argument("--networks", type=int, default=12)
    parser.add_argument("--holdout", type=int, default=24)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="a small space, 4 budgets, 5 percent")
    parser.add_argument("--out", type=Path, help="another file for the figures")
    given = parser.parse_args()
    if given.quick:
        given.spaces, given.budgets, given.networks, given.holdout = "rnas-cl-xs", 4, 4, 4
    searches = [Path(each) for each in given.searches.split(",") if each]
    names = given.spaces.split(",")
    if searches and len(searches) != len(names):
        parser.error("--searches takes one folder per space")
    runs = []
    for place, name in enumerate(names):
        with tempfile.TemporaryDirectory() as folder:
            work = Path(folder)
            runs.append(one_run(name, searches[place] if searches else None, given, work))
    write_result("adherence", {"runs": runs, "quick": given.quick}, given.out)


def one_run(
    name: str, search: Path | None, given: argparse.Namespace, work: Path
) -> dict[str, object]:
    """Profile, calibrate, derive for every budget, measure again, and judge."""
    dtype = parse_target(given.target).runtime.precision
    searched = None if search is None else read_search(search / SEARCH_FILE)
    spec = space_spec(name) if searched is None else searched.space
    space = space_from_spec(spec, dtype=dtype)
    timing = TimingSettings.quick if given.quick else TimingSettings
    networks_timing = (
        timing(seed=given.seed) if given.quick else TimingSettings.for_networks(seed=given.seed)
    )
    path = work / "table.jsonl"
    began = time.perf_counter()
    make_table(space, given.target, path, threads=1, settings=timing(seed=given.seed))
    calibration = make_calibration(
        path,
        networks=given.networks,
        holdout=given.holdout,
        settings=networks_timing,
        seed=given.seed,
    )
    table_s = time.perf_counter() - began
    costs = SpaceCosts(space, LatencyTable.read(path))
    if search is None:
        search = work / "search"
        write_search(space, costs, search, given.target, given.seed)
    low, high = costs.latency.range_ms()
    inside = MARGIN * (high - low)
    budgets_ms = np.linspace(low + inside, high - inside, given.budgets)
    derived: dict[int, Derivation] = {}
    again_ms: dict[int, tuple[float, ...]] = {}
    failures: dict[int, str] = {}
    rounds = []
    for place in map(int, np.random.default_rng(given.seed).permutation(given.budgets)):
        budgets = Budgets(latency_ms=float(budgets_ms[place]))
        try:
            derived[place] = make_derivation(
                search, path, budgets, work / "one.json", measure=True, settings=networks_timing
            )
        except BudgetError as error:
            failures[place] = error.message
            continue
        workload = space.workload(derived[place].genotype)
        looks = []
        for _ in range(AGAIN):
            time.sleep(PAUSE_S)
            looks.append(measured_ms([workload], given.target, networks_timing))
        again_ms[place] = tuple(float(look[0]) for look, _ in looks)
        rounds.extend(round_log for _, round_log in looks)
    workloads = [space.workload(derived[place].genotype) for place in sorted(derived)]
    later_ms, round_log = measured_ms(workloads, given.target, networks_timing)
    rounds.append(round_log)
    scores = [np.array(row) for row in read_search(search / SEARCH_FILE).log_probabilities]
    front = pareto_front(costs, scores, Budgets(latency_ms=high))
    kept = []
    for column, place in enumerate(sorted(derived)):
        each = derived[place]
        assert each.measured_ms is not None
        further = int(np.searchsorted(front.latencies_ms, each.budget_ms, side="right"))
        kept.append(
            Kept(
                budget_ms=each.budget_ms,
                predicted_ms=each.predicted_ms,
                derived_ms=each.measured_ms,
                again_ms=again_ms[place],
                later_ms=float(later_ms[column]),
                attempts=len(each.attempts),
                binds=bool(front.latencies_ms[-1] > each.budget_ms),
                next_ms=float(front.latencies_ms[further]) if further < len(front) else None,
            )
        )
    judged = report(name, kept, failures, calibration)
    return {
        "space": name,
        "target": given.target,
        "scores": "random" if searched is None else "searched",
        "seed": given.seed,
        "table_and_calibration_s": table_s,
        "calibration_holdout": calibration.holdout,
        "calibration_noise_floor_percent": calibration.noise_floor_percent,
        "range_ms": [low, high],
        "budgets": [asdict(each) for each in kept],
        "failures": {f"{budgets_ms[place]:.6g} ms": text for place, text in failures.items()},
        "rounds_again": rounds,
        "judged": judged,
    }


def write_search(
    space: ChainSpace, costs: SpaceCosts, folder: Path, target: str, seed: int
) -> None:
    """Write a search's folder with random scores, so that `hwnas derive`'s own code reads it."""
    scores = random_scores(space, seed)
    layers = space.network(space.largest).tap_names
    low, high = costs.latency.range_ms()
    record = SearchRecord(
        space=space.spec,
        target=target,
        budget_ms=high,
        expected_ms=low,
        log_probabilities=tuple(tuple(row.tolist()) for row in scores),
        tutor_probabilities=tuple((1.0,) for _ in layers),
        student_layers=layers,
        teacher_layers=("none",),
        attention_size=1,
        seed=seed,
    )
    with new_artifact(folder, ManifestDraft(kind="search")) as new:
        (new / SEARCH_FILE).write_bytes(encode_json(record, indent=2))


def measured_ms(
    workloads: Sequence[Chain], target: str, settings: TimingSettings
) -> tuple[NDArray[np.float64], dict[str, object]]:
    """Compile networks anew and measure them together; return medians and what was repeated."""
    with profiler_for(target) as profiler:
        timings = profiler.time_networks(workloads, settings)
        medians = np.array([each.statistics.median_us / 1e3 for each in timings])
        log = profiler.log
    return medians, {
        "kept": log.kept,
        "disturbed": log.disturbed,
        "noisy": log.noisy,
        "reasons": log.reasons,
    }


def report(
    name: str, kept: Sequence[Kept], failures: dict[int, str], calibration: CalibrationRecord
) -> dict[str, float]:
    """Print every budget, and judge all."""
    floor = float(np.percentile([each.noise for each in kept], 95))
    over = [each for each in kept if each.share > 1 + floor]
    binding = [each for each in kept if each.binds]
    used = [each for each in binding if each.share >= ASKED_SHARE]
    later = [each.later_ms / each.budget_ms for each in kept]
    off_percent = calibration.holdout.mape_percent
    say(f"{name}: milliseconds; held-out error of the table {off_percent:.2f} %")
    say("    budget predicted   derived     again    share     later  attempts")
    for each in kept:
        notes = [] if each.binds else ["does not bind"]
        notes += ["OVER"] if each in over else []
        if each.next_ms is not None:
            notes.append(f"next {each.next_ms:.4f}")
        say(
            f"  {each.budget_ms:8.4f}  {each.predicted_ms:8.4f}  {each.derived_ms:8.4f}  "
            f"{np.median(each.again_ms):8.4f}  {100 * each.share:5.1f} %  "
            f"{each.later_ms:8.4f}  {each.attempts:8d}  "
            f"{', '.join(notes)}"
        )
    for text in failures.values():
        say(f"  failed: {text}")
    quiet = floor <= LOUDEST_FLOOR
    judged = {
        "quiet_enough_to_judge": quiet,
        "n": len(kept),
        "failed": len(failures),
        "noise_floor_percent": 100 * floor,
        "over_by_more_than_noise": len(over),
        "over_at_all": sum(each.share > 1 for each in kept),
        "worst_share_percent": 100 * max(each.share for each in kept),
        "over_at_derivation": sum(each.derived_ms > each.budget_ms for each in kept),
        "binding": len(binding),
        "used_at_least_93_percent_of_binding": len(used),
        "least_share_of_binding_percent": 100 * min((e.share for e in binding), default=np.nan),
        "later_over_by_more_than_noise": sum(share > 1 + floor for share in later),
        "later_share_percent_worst": 100 * max(later),
    }
    say("  " + ", ".join(f"{key} {value:.4g}" for key, value in judged.items()))
    if not quiet:
        say(f"  NOT JUDGED: a noise floor of {100 * floor:.1f} % excuses too much; run it again")
    return judged


if __name__ == "__main__":
    main()
