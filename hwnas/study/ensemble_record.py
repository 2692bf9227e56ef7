"""What an ensemble study writes: the files of any study, and its comparisons beside them.

`hwnas study show` reads the same folder.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, final

from hwnas.core.artifacts import write_atomically
from hwnas.core.decoding import encode_json, read_json
from hwnas.core.environment import provenance
from hwnas.core.errors import ConfigError
from hwnas.latency.model import LatencyModel
from hwnas.report.drawing import drawing_style, svg_file_from_picture
from hwnas.space.macs import macs_of_network
from hwnas.study.collect import accuracies
from hwnas.study.ensemble_comparisons import (
    comparisons,
    comparisons_picture,
    markdown_from_comparisons,
    pairs,
)
from hwnas.study.figures import CLEAN, HRS, MEASURED_MS, WORST
from hwnas.study.gather import (
    LATENCY_FILE,
    PAGE_FILE,
    PLAN_FILE,
    failure_path,
    gathered,
    read_plan,
    result_path,
    write_record,
)
from hwnas.study.page import page_from_record
from hwnas.study.picture import study_pictures
from hwnas.study.records import ArmSeed, Plan, PlannedArm, PlannedThreat
from hwnas.study.watch import spent_of
from hwnas_profilers.table import LatencyTable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from hwnas.study.ensemble_arms import EnsembleArm, Lineup
    from hwnas.study.ensemble_comparisons import Comparison
    from hwnas.study.ensemble_config import EnsembleConfig
    from hwnas.study.ensemble_models import Model, ModelBuilder
    from hwnas.study.ensemble_work import EnsembleWorkshop
    from hwnas.study.records import StudyRecord
    from hwnas.study.work import Work

NAME = "ensemble"
"""What the study is called."""
CONFIG_FILE = "config.json"
COMPARISONS_FILE = "comparisons.json"
COMPARISONS_TABLE = "comparisons.md"
_QUESTION = "What do several networks as one give, beside one network that takes as long?"
_SECONDS_PER_MINUTE = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Goal:
    """An arm in a seed.

    Attributes:
        arm: The arm.
        seed: The seed.
        work: The attacks on it.
    """

    arm: EnsembleArm
    seed: int
    work: Work


@final
class EnsembleRecorder:
    """Writes what an ensemble study is to find, and what it has found.

    Args:
        config: The settings.
        lineup: The arms.
        builder: Builds models.
        workshop: Makes the work.
        out: Folder of the study.

    Attributes:
        worst: Name of the figure of the worst case over all attacks.
        hrs: Name of its harmonic mean with clean accuracy.

    Raises:
        LatencyTableError: The table that is given is of another space or target.
    """

    def __init__(
        self,
        config: EnsembleConfig,
        lineup: Lineup,
        builder: ModelBuilder,
        workshop: EnsembleWorkshop,
        out: Path,
    ) -> None:
        self._config, self._lineup, self._out = config, lineup, out
        self._builder, self._workshop = builder, workshop
        threat = config.threat.protocol
        self.worst, self.hrs = f"{threat}.{WORST}", f"{threat}.{HRS}"
        self._compared = (CLEAN, self.worst, self.hrs)
        self._predictor: LatencyModel | None = None
        if config.table:
            table = LatencyTable.read(Path(config.table))
            table.require(target=config.target.name, threads=config.target.threads)
            self._predictor = LatencyModel(builder.space, table)

    def write_plan(self, goals: Sequence[Goal]) -> None:
        """Write what the study is to find.

        Raises:
            ConfigError: The folder holds another study.
        """
        out = self._out
        if (out / PLAN_FILE).is_file() and (before := read_plan(out).name) != NAME:
            raise ConfigError(
                f"{out} holds the study `{before}`, not `{NAME}`", hint="name another folder"
            )
        write_atomically(out / PLAN_FILE, encode_json(self._plan(goals), indent=2))
        write_atomically(out / CONFIG_FILE, encode_json(self._config, indent=2))

    def write_figures(self, goal: Goal) -> None:
        """Write the figures of an arm in a seed whose work is done, once."""
        path = result_path(self._out, goal.arm.name, goal.seed)
        if path.is_file() and read_json(path, ArmSeed).key == goal.work.key:
            return
        judged = self._workshop.result(goal.work)
        model = self._workshop.latencies().model(self._lineup, goal.arm, goal.seed)
        network = self._builder.model(model, range(len(model.members)))
        predicted_ms = self._predicted_ms(model)
        trained = {f"train {place}": need for place, need in enumerate(goal.work.needs, start=1)}
        stages = {"latencies": self._workshop.measured, **trained, "attacks": goal.work}
        figures = ArmSeed(
            arm=goal.arm.name,
            seed=goal.seed,
            figures={
                **accuracies({judged.attacks.protocol: judged.attacks}),
                "params": float(sum(each.numel() for each in network.parameters())),
                "macs": float(macs_of_network(network, self._builder.image_shape)),
                **({} if predicted_ms is None else {"predicted_ms": predicted_ms}),
            },
            images=judged.attacks.n,
            network=model.label,
            artifacts={
                stage: work.path.relative_to(self._out).as_posix() for stage, work in stages.items()
            },
            minutes={
                stage: spent_of(work.spent_path).wall_s / _SECONDS_PER_MINUTE
                for stage, work in stages.items()
            },
            architecture=model.label,
            key=goal.work.key,
        )
        write_atomically(path, encode_json(figures, indent=2))
        failure_path(self._out, goal.arm.name, goal.seed).unlink(missing_ok=True)

    def found(self) -> tuple[StudyRecord, tuple[Comparison, ...]]:
        """Bring together what was found, and compare it."""
        if self._workshop.measured.done():
            session = self._workshop.latencies().session
            write_atomically(self._out / LATENCY_FILE, encode_json((session,), indent=1))
        record = gathered(self._out)
        compared = comparisons(
            record.results,
            pairs(self._lineup),
            self._compared,
            tolerance=self._config.compare.tolerance,
        )
        return record, compared

    def write(self, record: StudyRecord, found: tuple[Comparison, ...]) -> None:
        """Write raw data, tables, pictures and page."""
        out, tolerance = self._out, self._config.compare.tolerance
        write_record(record, out)
        write_atomically(out / COMPARISONS_FILE, encode_json(found, indent=1))
        text = markdown_from_comparisons(found, self._compared, tolerance)
        write_atomically(out / COMPARISONS_TABLE, text.encode())
        with drawing_style():
            own = comparisons_picture(found, self.worst, tolerance)
            others = study_pictures(record.table) if record.table else ()
        if own is None:
            return
        write_atomically(out / f"{own.name}.svg", svg_file_from_picture(own))
        write_atomically(out / PAGE_FILE, page_from_record(record, (own, *others)).encode())

    def _plan(self, goals: Sequence[Goal]) -> Plan:
        config = self._config
        attacks = config.judge.attacks
        threat = config.threat.protocol
        predicted = ("predicted_ms",) if config.table else ()
        return Plan(
            name=NAME,
            question=_QUESTION,
            scale="",
            seeds=config.seeds,
            baseline=self._lineup.wider(self._lineup.sources[0]).name,
            figures=(
                *self._compared,
                *(f"{threat}.{attack}" for attack in attacks),
                "params",
                "macs",
                *predicted,
                MEASURED_MS,
            ),
            threats=(PlannedThreat(name=threat, attacks=attacks, model=config.threat),),
            queries=config.judge.queries,
            arms=tuple(
                PlannedArm(
                    name=arm.name,
                    kind=arm.role,
                    description=arm.description,
                    keys={str(goal.seed): goal.work.key for goal in goals if goal.arm == arm},
                )
                for arm in self._lineup.arms
            ),
            provenance=provenance(),
        )

    def _predicted_ms(self, model: Model) -> float | None:
        """Sum the members' predicted latencies; None where one is no network of the table."""
        if self._predictor is None:
            return None
        found = [
            self._predictor.predict_ms(member.genotype)
            for member in model.members
            if member.genotype is not None and member.width == 1.0
        ]
        return sum(found) if len(found) == len(model.members) else None
