"""The settings of a whole run, as its TOML file holds them."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from hwnas.core.decoding import decode_toml
from hwnas.core.errors import ConfigError
from hwnas.data.sources import DataConfig
from hwnas.deploy.settings import ExportSettings
from hwnas.robustness.threat import ThreatModel
from hwnas.search.budget import Budgets
from hwnas.search.feasible import latency_range_ms, with_finite_latency
from hwnas.search.rnas_cl import SearchConfig
from hwnas.training.processes import Accelerator
from hwnas.training.student import TrainConfig
from hwnas.training.teacher import TeacherConfig
from hwnas.verify.verification import VerifySettings
from hwnas_profilers.timing import TimingSettings

if TYPE_CHECKING:
    from pathlib import Path

    from hwnas.latency.resources import SpaceCosts


_OTHER_BOUNDS = ("memory_kib", "weights_kib", "energy_mj", "macs_m", "params_k")


@dataclass(frozen=True, slots=True, kw_only=True)
class TargetConfig:
    """What the network will run on.

    Attributes:
        name: A target that `hwnas doctor` calls usable.
        threads: Threads within an operator.
    """

    name: str = "onnxruntime-cpu"
    threads: int = 1

    def __post_init__(self) -> None:
        if self.threads < 1:
            raise ConfigError(f"`threads` is at least 1, not {self.threads}")


@dataclass(frozen=True, slots=True, kw_only=True)
class SpaceConfig:
    """Which space is searched. Its images and classes are those of the data."""

    name: str = "rnas-cl-xs"


@dataclass(frozen=True, slots=True, kw_only=True)
class TableConfig:
    """Where the latency table comes from.

    Attributes:
        path: A table of this space and target that exists already; empty measures one.
        timing: How long operators are timed, and how exactly.
        network_timing: The same for whole networks.
        networks: Whole networks that the table is calibrated with.
        holdout: Whole networks that the calibration is judged on.
    """

    path: str = ""
    timing: TimingSettings = field(default_factory=TimingSettings)
    network_timing: TimingSettings = field(default_factory=TimingSettings.for_networks)
    networks: int = 12
    holdout: int = 24

    def __post_init__(self) -> None:
        if self.networks < 3 or self.holdout < 3:
            raise ConfigError("`networks` and `holdout` are at least 3 each")


@dataclass(frozen=True, slots=True, kw_only=True)
class BudgetConfig:
    """The bound on latency, one of `ms` and `fraction`, and bounds on what else there is.

    With other bounds that on latency may be left out. The slowest network of the space is the bound
    then, so that what is searched, recorded and verified always has one.

    Attributes:
        ms: In milliseconds.
        fraction: A place between the fastest (0) and the slowest (1) network of the space on the
            target, of those that meet the bound on memory; for examples that must run on any
            machine.
        memory_kib: Bound on the peak of live activations, in KiB.
        weights_kib: Bound on the size of the weights, in KiB.
        energy_mj: Bound on the energy of a call, in millijoules; held against the uncalibrated sum
            of isolated operators, and against a meter where one is at hand.
        macs_m: Bound on the multiply-accumulates per image, in millions.
        params_k: Bound on the trained parameters, in thousands.
    """

    ms: float | None = None
    fraction: float | None = None
    memory_kib: float | None = None
    weights_kib: float | None = None
    energy_mj: float | None = None
    macs_m: float | None = None
    params_k: float | None = None

    def __post_init__(self) -> None:
        others = {name: getattr(self, name) for name in _OTHER_BOUNDS}
        missing = self.ms is None and self.fraction is None and not any(others.values())
        if missing or (self.ms is not None and self.fraction is not None):
            raise ConfigError(
                "[budget] takes either `ms` or `fraction`", hint="e.g. `ms = 0.25` in [budget]"
            )
        for name, bound in {"ms": self.ms, **others}.items():
            if bound is not None and not (math.isfinite(bound) and bound > 0):
                raise ConfigError(f"[budget] `{name}` is a positive number, not {bound}")
        if self.fraction is not None and not 0 <= self.fraction <= 1:
            raise ConfigError(f"[budget] `fraction` is between 0 and 1, not {self.fraction}")

    def resolve(self, costs: SpaceCosts) -> Budgets:
        """Return the budgets that this is for a space on a target.

        Raises:
            BudgetError: No network meets the bound on memory, within which `fraction` is a place,
                or the slowest network.
            LatencyTableError: There is a bound on what the table does not tell.
        """
        bounds = {name: getattr(self, name) for name in _OTHER_BOUNDS}
        others = Budgets(latency_ms=math.inf if self.ms is None else self.ms, **bounds)
        if self.fraction is None:
            return with_finite_latency(costs, others)
        low, high = latency_range_ms(costs, self.memory_kib)
        return replace(others, latency_ms=low + self.fraction * (high - low))


@dataclass(frozen=True, slots=True, kw_only=True)
class RunConfig:
    """Everything that `hwnas run` can be told.

    Attributes:
        seed: Seed of everything that is drawn.
        training_threads: Threads that training computes with; 0 takes all cores. Networks as small
            as the demo's gain little from a second one, and on busy cores lose much by waiting for
            it.
        accelerator: What trainings compute on; `auto` takes a GPU where torch finds one.
        tensorboard: Folder for TensorBoard's event files; empty writes none.
    """

    seed: int = 0
    training_threads: int = 0
    accelerator: Accelerator = "auto"
    tensorboard: str = ""
    target: TargetConfig = field(default_factory=TargetConfig)
    space: SpaceConfig = field(default_factory=SpaceConfig)
    data: DataConfig = field(default_factory=DataConfig)
    threat: ThreatModel = field(default_factory=ThreatModel)
    table: TableConfig = field(default_factory=TableConfig)
    budget: BudgetConfig = field(default_factory=lambda: BudgetConfig(fraction=0.5))
    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    search: SearchConfig = field(default_factory=SearchConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    export: ExportSettings = field(default_factory=ExportSettings)
    verify: VerifySettings = field(default_factory=VerifySettings)

    def __post_init__(self) -> None:
        if self.seed < 0:
            raise ConfigError(f"`seed` is at least 0, not {self.seed}")
        if self.training_threads < 0:
            raise ConfigError(f"`training_threads` is at least 0, not {self.training_threads}")


def load_config(
    path: Path | None,
    *,
    data: str | None = None,
    seed: int | None = None,
    **sections: dict[str, Any],
) -> RunConfig:
    """Read a run's settings and put directly given ones before them.

    Args:
        path: The TOML file; None takes every default.
        data: Source of the images.
        seed: Seed of everything that is drawn.
        **sections: Settings by section, e.g. `search={"epochs": 5}`; those that are None are left.

    Raises:
        InputFileError: The file is missing or unreadable.
        ConfigError: A setting is unknown, of a wrong type, or contradicts another.
    """
    config = decode_toml(path, RunConfig) if path else RunConfig()
    sections = {"data": {"source": data}, **sections}
    for name, values in sections.items():
        given = {key: value for key, value in values.items() if value is not None}
        config = replace(config, **{name: replace(getattr(config, name), **given)})
    return config if seed is None else replace(config, seed=seed)
