"""What a study found, as data: the figures of every arm and seed, and what they come to."""

from __future__ import annotations

from dataclasses import dataclass, field

from hwnas.core.environment import Provenance
from hwnas.robustness.criteria import Check
from hwnas.robustness.threat import ThreatModel
from hwnas.study.latency import EngineSession, Session
from hwnas.study.statistics import PairedDifference, SeedMean

SCHEMA = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class ArmSeed:
    """The figures of one arm in one seed.

    Attributes:
        arm: Its arm.
        seed: Its seed.
        figures: By name, e.g. `clean`, `pixel.pgd`, `params`: see `hwnas.study.figures`.
        images: Test images that the shares among them were judged on.
        network: What the network is, in one line; empty where it has no genotype.
        artifacts: Folders that it was made in, by stage, relative to the store's.
        minutes: How long each stage took, in minutes of wall time over all of its runs; shared work
            is counted in every arm that needs it.
        architecture: Tells its network, and what it is to run on, from others: by it a measured
            latency is found. Empty where none is measured.
        key: Tells what it was made from, from other settings.
        checks: By threat, its attacks beside each other, passed or not; none in results of earlier
            versions.
        engine_images: Test images that shares of its engines, and of their twin beside them, were
            judged on; 0 of an arm without engines.
    """

    arm: str
    seed: int
    figures: dict[str, float]
    images: int
    network: str = ""
    artifacts: dict[str, str] = field(default_factory=dict)
    minutes: dict[str, float] = field(default_factory=dict)
    architecture: str = ""
    key: str = ""
    checks: dict[str, tuple[Check, ...]] = field(default_factory=dict)
    engine_images: int = 0
    schema: int = SCHEMA


@dataclass(frozen=True, slots=True, kw_only=True)
class ArmFailure:
    """An arm and seed that came to no figures.

    Attributes:
        arm: Its arm.
        seed: Its seed.
        stage: What failed.
        message: The error.
        hint: How to mend it.
        key: Tells its settings from others.
    """

    arm: str
    seed: int
    stage: str
    message: str
    hint: str = ""
    key: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One figure of one arm, over its seeds.

    Attributes:
        figure: Its name.
        seeds: Seeds that have it.
        values: Its value in each of them.
        over_seeds: Mean and t interval over the seeds; of a share, the interval is cut at 0 and 1.
        low_images: Of a share: lower end of the 95 % Wilson interval over the test images; see
            `interval_over_images`.
        high_images: Upper end of it.
        difference: To the baseline arm; None of the baseline itself, and without one.
    """

    figure: str
    seeds: tuple[int, ...]
    values: tuple[float, ...]
    over_seeds: SeedMean
    low_images: float | None = None
    high_images: float | None = None
    difference: PairedDifference | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ArmRow:
    """One arm of a table.

    Attributes:
        arm: Its name.
        description: What it is.
        seeds: Seeds that are finished.
        cells: Its figures, in the table's order; those that it has.
    """

    arm: str
    description: str
    seeds: tuple[int, ...]
    cells: tuple[Cell, ...]

    def cell(self, figure: str) -> Cell | None:
        """Return a figure's cell; None where the arm has no such figure."""
        return next((cell for cell in self.cells if cell.figure == figure), None)


@dataclass(frozen=True, slots=True, kw_only=True)
class FailedCheck:
    """A check of an evaluation that failed.

    Attributes:
        arm: The arm.
        seed: The seed.
        threat: The threat whose figures it is about.
        check: The check, with what its failure means.
    """

    arm: str
    seed: int
    threat: str
    check: Check


@dataclass(frozen=True, slots=True, kw_only=True)
class StudyTable:
    """All arms, with intervals, differences and the Pareto front.

    Attributes:
        figures: Names of the figures that are shown, in order.
        baseline: The arm that the others are compared with; empty without one.
        main: The figure that pictures and front show: the first one under attack.
        images: Test images behind every share.
        rows: One per arm that has a finished seed.
        front: Arms that no other beats in both the mean of `main` and the mean measured latency, by
            rising latency; empty where latencies are not measured.
        checks: How many comparisons of attacks with each other were made, over all arms and seeds.
        failed: Those of them that failed.
    """

    figures: tuple[str, ...]
    baseline: str
    main: str
    images: int
    rows: tuple[ArmRow, ...]
    front: tuple[str, ...]
    checks: int = 0
    failed: tuple[FailedCheck, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineRow:
    """One engine of an arm, over the arm's seeds; or the twin that its engines are compared with.

    Attributes:
        arm: The arm.
        engine: What the engine is called: the first part of its figures' names.
        target: What it runs on; empty of the twin.
        seeds: Seeds that it was judged in.
        cells: Its figures; their differences are to the twin.
    """

    arm: str
    engine: str
    target: str
    seeds: tuple[int, ...]
    cells: tuple[Cell, ...]

    def cell(self, what: str) -> Cell | None:
        """Return the cell of a figure, named without the engine; None where there is none."""
        figure = f"{self.engine}.{what}"
        return next((cell for cell in self.cells if cell.figure == figure), None)


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineTable:
    """All engines beside their twins.

    Attributes:
        images: Test images behind every share.
        rows: By arm the twin, then its engines.
    """

    images: int
    rows: tuple[EngineRow, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedEngine:
    """An engine that is made of each network of a space.

    Attributes:
        name: What it is called.
        target: What it runs on.
    """

    name: str
    target: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedEngines:
    """How engines are judged.

    Attributes:
        engines: The engines.
        threat: Name of the threat that they are attacked under.
        queries: The most queries of Square per image.
        steps: Gradient steps of each attack that is made for an engine.
        calibration_images: Validation images that ranges of int8 are taken from.
        without: Arms whose networks are none of a space: they have no engines.
    """

    engines: tuple[PlannedEngine, ...]
    threat: str
    queries: int
    steps: int
    calibration_images: int
    without: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedArm:
    """An arm that a study has.

    Attributes:
        name: What it is called.
        kind: What it does.
        description: What it is.
        keys: What its figures depend on, by seed.
    """

    name: str
    kind: str
    description: str
    keys: dict[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedThreat:
    """A threat model that networks are judged under.

    Attributes:
        name: What it is called.
        attacks: Attacks under it.
        model: The threat model.
    """

    name: str
    attacks: tuple[str, ...]
    model: ThreatModel


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What a study is to find: the content of `plan.json`.

    Attributes:
        name: What the study is called.
        question: What it is to answer.
        scale: Its scale; empty for the file's own settings.
        seeds: Its seeds.
        baseline: The arm that others are compared with; empty for none.
        figures: What the table shows.
        threats: What networks are judged under.
        queries: The most queries of Square per image.
        arms: Its arms.
        provenance: What runs it, and where.
        engines: Engines of its networks; None for none.
    """

    name: str
    question: str
    scale: str
    seeds: tuple[int, ...]
    baseline: str
    figures: tuple[str, ...]
    threats: tuple[PlannedThreat, ...]
    queries: int
    arms: tuple[PlannedArm, ...]
    provenance: Provenance
    engines: PlannedEngines | None = None
    schema: int = SCHEMA


@dataclass(frozen=True, slots=True, kw_only=True)
class StudyRecord:
    """All that a study has found so far: the content of `study.json`.

    Attributes:
        plan: What it is to find.
        results: Figures of every arm and seed that is finished.
        failures: Arms and seeds that failed.
        pending: Arms and seeds that are neither, as `arm seed 0`.
        table: What the results come to; None where there are none yet.
        latency: Sessions in which latencies were measured.
        engines: Engines beside their twins; None where there are none.
        engine_latency: The session in which engines were timed; None where there was none.
    """

    plan: Plan
    results: tuple[ArmSeed, ...]
    failures: tuple[ArmFailure, ...]
    pending: tuple[str, ...]
    table: StudyTable | None
    latency: tuple[Session, ...]
    engines: EngineTable | None = None
    engine_latency: EngineSession | None = None
    schema: int = SCHEMA
