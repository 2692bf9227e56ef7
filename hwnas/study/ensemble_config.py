"""The settings of an ensemble study, as its TOML file holds them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, TypeAlias, get_args

from hwnas.core.errors import ConfigError, nearest
from hwnas.data.sources import DataConfig
from hwnas.robustness.attacks.registry import check_attacks
from hwnas.robustness.threat import ThreatModel
from hwnas.space.ensemble import check_combination, check_members
from hwnas.space.handcrafted.parts import check_width
from hwnas.space.handcrafted.registry import check_name
from hwnas.stages.config import SpaceConfig, TargetConfig
from hwnas.study.plan import JudgeSettings
from hwnas.training.fit import FitSettings, check_fit_settings
from hwnas.training.processes import Accelerator
from hwnas.training.robust import RobustMethod
from hwnas_profilers.timing import TimingSettings

Source: TypeAlias = Literal["random", "genotype", "handcrafted"]
"""Where members come from: see `MembersConfig`."""

SOURCES: tuple[str, ...] = get_args(Source)


@dataclass(frozen=True, slots=True, kw_only=True)
class MembersConfig:
    """The table [members]: what ensembles are made of.

    Attributes:
        count: Members of an ensemble.
        sources: Where they come from; each makes arms of its own. `random` draws different networks
            of the space, others in every seed; `genotype` takes one network of it several times,
            with different initial weights; `handcrafted` takes `networks`.
        combinations: How members become one model, each in arms of its own: see `Ensemble`. There
            is `concat` too, which takes another training per source and seed.
        genotype: A file that `hwnas derive` wrote, whose network `genotype` takes; empty draws one
            of the space by the first seed.
        networks: Hand-crafted networks that `handcrafted` takes, one after the other, from the
            beginning again where there are more members.
        width: What the channels of hand-crafted members are multiplied by.
    """

    count: int = 3
    sources: tuple[str, ...] = ("random", "genotype")
    combinations: tuple[str, ...] = ("average", "logits")
    genotype: str = ""
    networks: tuple[str, ...] = ()
    width: float = 1.0

    def __post_init__(self) -> None:
        check_members(self.count)
        check_width(self.width)
        _check_named("sources", self.sources)
        for source in self.sources:
            if source not in SOURCES:
                similar = nearest(source, SOURCES)
                known = f"known: {', '.join(SOURCES)}"
                raise ConfigError(
                    f"members cannot come from `{source}`",
                    hint=f"did you mean `{similar[0]}`? {known}" if similar else known,
                )
        _check_named("combinations", self.combinations)
        for combination in self.combinations:
            check_combination(combination)
        for name in self.networks:
            check_name(name)
        if ("handcrafted" in self.sources) != bool(self.networks):
            raise ConfigError(
                "[members] `networks` are what the source `handcrafted` takes: give both, or none",
                hint='e.g. sources = ["handcrafted"], networks = ["resnet20"]',
            )
        if self.genotype and "genotype" not in self.sources:
            raise ConfigError(
                "[members] `genotype` is what the source `genotype` takes, which is not among the "
                f"sources ({', '.join(self.sources)})"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class CompareConfig:
    """The table [compare]: what ensembles are compared with at equal latency.

    Attributes:
        wider: What is widened until it takes as long as the ensemble: a hand-crafted network, or
            empty for the first member.
        tolerance: Share by which the latencies may differ. What is farther apart is shown, and not
            called comparable.
        timing: How long models are timed, and how exactly.
    """

    wider: str = ""
    tolerance: float = 0.1
    timing: TimingSettings = field(default_factory=TimingSettings.for_networks)

    def __post_init__(self) -> None:
        if self.wider:
            check_name(self.wider)
        if not 0 < self.tolerance < 1:
            raise ConfigError(
                f"[compare] `tolerance` is a share between 0 and 1, not {self.tolerance}"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class HandcraftedConfig:
    """A table [[handcrafted]]: one hand-crafted network, in the table beside the others.

    Attributes:
        name: One of `hwnas.space.handcrafted.registry.HANDCRAFTED`.
        width: What its channels are multiplied by.
    """

    name: str
    width: float = 1.0

    def __post_init__(self) -> None:
        check_name(self.name)
        check_width(self.width)


@dataclass(frozen=True, slots=True, kw_only=True)
class EnsembleTraining(FitSettings):
    """The table [train], beside the settings of `FitSettings`.

    Attributes:
        robust: As of `FitSettings`. `none` asks what the paper asks: what topology and ensembling
            give without adversarial training.
        epochs: Epochs.
        teacher: Folder of the teacher that `ard` and `rslad` learn from.
    """

    robust: RobustMethod = "none"
    epochs: int = 5
    teacher: str = ""

    def __post_init__(self) -> None:
        check_fit_settings(self, has_teacher=bool(self.teacher))


@dataclass(frozen=True, slots=True, kw_only=True)
class EnsembleConfig:
    """Everything that `hwnas study ensemble` can be told.

    Attributes:
        seeds: Every arm is trained and attacked in each of them.
        training_threads: Threads that training computes with; 0 takes all cores.
        accelerator: What training and attacks compute on; `auto` takes a GPU where torch finds one.
        table: Latency table of the space on the target; what it predicts for members is summed and
            shown beside what was measured. Empty shows measurements alone.
    """

    seeds: tuple[int, ...] = (0, 1, 2)
    training_threads: int = 0
    accelerator: Accelerator = "auto"
    table: str = ""
    target: TargetConfig = field(default_factory=TargetConfig)
    space: SpaceConfig = field(default_factory=SpaceConfig)
    data: DataConfig = field(default_factory=DataConfig)
    threat: ThreatModel = field(default_factory=ThreatModel)
    members: MembersConfig = field(default_factory=MembersConfig)
    compare: CompareConfig = field(default_factory=CompareConfig)
    handcrafted: tuple[HandcraftedConfig, ...] = ()
    train: EnsembleTraining = field(default_factory=EnsembleTraining)
    judge: JudgeSettings = field(default_factory=JudgeSettings)

    def __post_init__(self) -> None:
        if not self.seeds or min(self.seeds) < 0 or len(set(self.seeds)) != len(self.seeds):
            raise ConfigError(
                f"`seeds` are at least one, each at least 0 and named once, not {list(self.seeds)}",
                hint="e.g. seeds = [0, 1, 2]",
            )
        if self.training_threads < 0:
            raise ConfigError(f"`training_threads` is at least 0, not {self.training_threads}")
        check_attacks(self.judge.attacks, self.threat)
        if len(set(self.handcrafted)) != len(self.handcrafted):
            raise ConfigError("a [[handcrafted]] network comes twice")


def _check_named(name: str, values: tuple[str, ...]) -> None:
    if not values or len(set(values)) != len(values):
        raise ConfigError(
            f"[members] `{name}` are at least one, each named once, not {list(values)}"
        )
