"""A study as its TOML file holds it: arms over seeds, and how each is judged."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from hwnas.core.decoding import convert, read_text
from hwnas.core.errors import ConfigError, nearest
from hwnas.robustness.attacks.registry import check_attacks
from hwnas.robustness.threat import ThreatModel
from hwnas.stages.config import RunConfig
from hwnas.study.engine_settings import EngineSettings
from hwnas.study.figures import CLEAN, COSTS, HRS, TWIN, WORST, engine_names

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

T = TypeVar("T")
Plain = dict[str, Any]

ArmKind = Literal["search", "train", "teacher", "handcrafted"]
"""What an arm does before its network is judged:

- `search`: teacher, latency table, search, derive, train.
- `train`: teacher, latency table, train, of the architecture that `genotype` names. A search is
  made too where something is taken from it: tutors (`tutors = "searched"` in its [search]) or first
  weights (`init = "supernet"` in its [train]).
- `teacher`: the teacher itself, of the arm's own seed.
- `handcrafted`: a network that `genotype` names in `hwnas.space.handcrafted`, trained as `train`.
"""

KINDS_WITH_ENGINES: tuple[ArmKind, ...] = ("search", "train")
"""Kinds of arms whose network is one of a space, which is what exports take. Networks made by hand
and teachers have no engines in studies."""

COPY_FILE = "study.toml"
"""A study's file, in the study's folder."""

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_+-]*")
_EXCLUSIVE = (("budget", "ms", "fraction"),)
"""Settings of which one may be given: one that is given takes the place of the other."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StudySettings:
    """The table [study].

    Attributes:
        name: What the study is called.
        question: What it is to answer, in a sentence.
        seeds: Each arm is run in each of them.
        baseline: The arm that the others are compared with; empty for none.
        figures: What the table shows; empty for all accuracies, size, latency and time.
        arms: Arms to run; empty for all.
        teachers: `one` trains one teacher for all seeds, by the seed of [base], so that intervals
            are of what students come to with this teacher; `per-seed` trains one for each.
        measure: `both` measures every derived network, which its budget is held by, and all
            networks side by side at the end, where this device is the table's; `end` derives by
            predictions, so that a busy machine fails no arm; `none` measures nothing.
    """

    name: str
    question: str
    seeds: tuple[int, ...]
    baseline: str = ""
    figures: tuple[str, ...] = ()
    arms: tuple[str, ...] = ()
    teachers: Literal["one", "per-seed"] = "one"
    measure: Literal["both", "end", "none"] = "both"

    def __post_init__(self) -> None:
        if not NAME.fullmatch(self.name):
            raise ConfigError(f"`name` is of letters, digits, `-`, `_` and `+`, not {self.name!r}")
        if not self.seeds:
            raise ConfigError("`seeds` is empty", hint="e.g. seeds = [0, 1, 2]")
        if min(self.seeds) < 0 or len(set(self.seeds)) != len(self.seeds):
            raise ConfigError(f"`seeds` are at least 0 and each named once, not {list(self.seeds)}")


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgeSettings:
    """The table [judge]: how every network is judged.

    Attributes:
        images: Test images, the same in every arm and seed; 0 takes all.
        attacks: Attacks under each threat that names none of its own.
        batch: Images at a time.
        queries: The most queries of Square per image.
    """

    images: int = 0
    attacks: tuple[str, ...] = ("fgsm", "pgd")
    batch: int = 250
    queries: int = 5000

    def __post_init__(self) -> None:
        if self.images < 0 or self.batch < 1 or self.queries < 1:
            raise ConfigError("`images` is at least 0, `batch` and `queries` at least 1")
        check_attacks(self.attacks, ThreatModel())


@dataclass(frozen=True, slots=True, kw_only=True)
class StudyThreat:
    """A table [[threat]]: a threat model that networks are judged under.

    Attributes:
        name: Goes before its figures. It holds "normalized" where the protocol is that, and only
            there, so that no figure of it stands anywhere without saying so.
        attacks: Attacks under it.
        model: The threat model: all other settings of the table.
    """

    name: str
    attacks: tuple[str, ...]
    model: ThreatModel


@dataclass(frozen=True, slots=True, kw_only=True)
class Arm:
    """A table [[arm]].

    Attributes:
        name: What it is called.
        kind: What it does: see `ArmKind`.
        description: What it is, in a sentence.
        genotype: Of `train`, an architecture: one option per searched block, or one of `smallest`,
            `largest`, `random`, `uniform` and `published`: see `hwnas.study.architectures`. Of
            `handcrafted`, a network's name.
        width: Of `handcrafted`, what its channels are multiplied by.
        settings: Settings by section, before those of [base].
    """

    name: str
    kind: ArmKind = "search"
    description: str = ""
    genotype: str | tuple[int | str, ...] = ""
    width: float = 1.0
    settings: Plain = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not NAME.fullmatch(self.name):
            raise ConfigError(
                f"an arm's `name` is of letters, digits, `-`, `_` and `+`, not {self.name!r}"
            )
        takes = self.kind in ("train", "handcrafted")
        if takes and not self.genotype:
            raise ConfigError(
                f"arm `{self.name}` of kind {self.kind} needs a `genotype`",
                hint='e.g. genotype = "smallest"' if self.kind == "train" else "",
            )
        if self.kind == "handcrafted" and not isinstance(self.genotype, str):
            raise ConfigError(f"the `genotype` of arm `{self.name}` is a network's name, a text")
        if not takes and self.genotype:
            raise ConfigError(
                f"arm `{self.name}` of kind {self.kind} takes no `genotype`",
                hint='kind = "train" trains a given one',
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Scale:
    """A table [scale.NAME]: what is put before the file's own tables of the same names."""

    study: Plain = field(default_factory=dict)
    base: Plain = field(default_factory=dict)
    judge: Plain = field(default_factory=dict)
    engines: Plain = field(default_factory=dict)
    threat: dict[str, Plain] = field(default_factory=dict)
    arm: dict[str, Plain] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class _File:
    study: Plain
    common: str = ""
    base: Plain = field(default_factory=dict)
    judge: Plain = field(default_factory=dict)
    engines: Plain = field(default_factory=dict)
    threat: tuple[Plain, ...] = ()
    arm: tuple[Arm, ...] = ()
    scale: dict[str, _Scale] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Study:
    """A study at one scale, checked.

    Attributes:
        settings: The table [study].
        scale: Name of the scale; empty for the file's own settings.
        judge: How networks are judged.
        engines: Which engines are made of networks of a space, and how these are judged; threat and
            images are those that they come to.
        threats: What networks are judged under.
        arms: The arms that are run, in the file's order.
        configs: The settings of each arm, by its name; their seed is that of [base].
    """

    settings: StudySettings
    scale: str
    judge: JudgeSettings
    engines: EngineSettings
    threats: tuple[StudyThreat, ...]
    arms: tuple[Arm, ...]
    configs: dict[str, RunConfig]

    @property
    def figures(self) -> tuple[str, ...]:
        """Names of the figures to show, in order. Engines have a table of their own."""
        return self.settings.figures or (*accuracy_figures(self.threats), *COSTS)

    @property
    def arms_without_engines(self) -> tuple[str, ...]:
        """Arms whose networks engines are not made of, where they are made of others."""
        if not self.engines.targets:
            return ()
        return tuple(arm.name for arm in self.arms if arm.kind not in KINDS_WITH_ENGINES)

    def config_of(self, arm: Arm, seed: int) -> RunConfig:
        """Return the settings of an arm in a seed."""
        return replace(self.configs[arm.name], seed=seed)

    def teacher_config_of(self, arm: Arm, seed: int) -> RunConfig:
        """Return the settings that the arm's teacher is made with."""
        if self.settings.teachers == "one":
            return self.configs[arm.name]
        return self.config_of(arm, seed)

    def only(self, *, arms: Iterable[str], seeds: Iterable[int]) -> Study:
        """Return the study with some arms and seeds alone; empty takes all.

        Raises:
            ConfigError: There is no such arm or seed.
        """
        names, numbers = tuple(arms), tuple(seeds)
        known = [arm.name for arm in self.arms]
        for name in names:
            _require(name, known, "arm")
        for seed in numbers:
            if seed not in self.settings.seeds:
                raise ConfigError(
                    f"the study has no seed {seed}", hint=f"it has {list(self.settings.seeds)}"
                )
        settings = replace(self.settings, seeds=numbers or self.settings.seeds)
        chosen = tuple(arm for arm in self.arms if not names or arm.name in names)
        return replace(self, settings=settings, arms=chosen)


def accuracy_figures(threats: Iterable[StudyThreat]) -> tuple[str, ...]:
    """Return the names of all shares of images: clean, and under each threat."""
    attacked = (
        f"{threat.name}.{what}" for threat in threats for what in (WORST, HRS, *threat.attacks)
    )
    return (CLEAN, *attacked)


def read_study(path: Path, scale: str = "", *, data: str | None = None) -> Study:
    """Read a study. All of its scales are checked, whichever is asked for.

    Args:
        path: The TOML file.
        scale: Name of a scale; empty takes the file's own settings.
        data: Source of the images of all arms, in place of the file's.

    Raises:
        InputFileError: The file is missing or unreadable.
        ConfigError: A setting of any arm and scale is unknown, of a wrong type or out of range; an
            arm's name comes twice; the baseline is no arm; there is no such scale.
    """
    source = str(path)
    file = convert(study_document(path), _File, source=source)
    if scale:
        _require(scale, file.scale, "scale", source)
    scales = {"": _Scale()} | file.scale
    given: Plain = {} if data is None else {"data": {"source": data}}
    studies = {name: _study(file, name, each, given, source) for name, each in scales.items()}
    return studies[scale]


def study_document(path: Path) -> Plain:
    """Read a study's file, its tables put before those of the file that it names as `common`.

    Studies of one kind share their settings so: `common = "common.toml"`, beside the file itself.

    Raises:
        InputFileError: A file is missing or unreadable.
        ConfigError: It is not valid TOML, or the common file names a further one.
    """
    document = _toml(path)
    place = _common_of(path, document)
    if place is None:
        return document
    common = _toml(place)
    if "common" in common:
        raise ConfigError(f"{place} is common to others and cannot have a `common` itself")
    return merged(common, document)


def common_file(path: Path) -> Path | None:
    """Return the file that a study's file names as `common`; None where it names none.

    Raises:
        ConfigError: It is not the name of a file beside it.
    """
    return _common_of(path, _toml(path))


def _common_of(path: Path, document: Plain) -> Path | None:
    name = document.get("common", "")
    if not name:
        return None
    # It is copied into the study's folder, where other files have names of their own.
    if (
        not isinstance(name, str)
        or not name.endswith(".toml")
        or name == COPY_FILE
        or "/" in name
        or "\\" in name
    ):
        raise ConfigError(
            f"{path}: `common` names a TOML file beside it, not {name!r}",
            hint='e.g. "common.toml"',
        )
    return path.parent / name


def _toml(path: Path) -> Plain:
    try:
        return tomllib.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path} is not valid TOML: {error}") from error


def merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> Plain:
    """Put settings before others, table by table.

    >>> merged({"train": {"epochs": 1, "batch": 8}}, {"train": {"epochs": 2}})
    {'train': {'epochs': 2, 'batch': 8}}
    >>> merged({"budget": {"fraction": 0.5}}, {"budget": {"ms": 2.0}})
    {'budget': {'ms': 2.0}}
    """
    result = dict(base)
    for key, value in over.items():
        both = isinstance(value, Mapping) and isinstance(result.get(key), Mapping)
        result[key] = merged(result[key], value) if both else value
    for section, *names in _EXCLUSIVE:
        given = [name for name in names if name in _table(over, section)]
        if given and section in result:
            others = {name for name in names if name not in given}
            result[section] = {
                name: value for name, value in result[section].items() if name not in others
            }
    return result


def _study(file: _File, name: str, scale: _Scale, given: Plain, source: str) -> Study:
    where = f"{source} at scale {name}" if name else source
    settings = convert(merged(file.study, scale.study), StudySettings, source=f"{where} [study]")
    judge = convert(merged(file.judge, scale.judge), JudgeSettings, source=f"{where} [judge]")
    threats = _threats(file.threat, scale.threat, judge, where)
    names = [arm.name for arm in file.arm]
    if not names:
        raise ConfigError(f"{source} has no [[arm]]")
    _refuse_twice(names, "arms", source)
    for each in scale.arm:
        _require(each, names, "arm", where)
    for each in settings.arms:
        _require(each, names, "arm", f"{where} [study] arms")
    base = merged(file.base, scale.base)
    convert(base, RunConfig, source=f"{where} [base]")
    arms = tuple(arm for arm in file.arm if not settings.arms or arm.name in settings.arms)
    configs = {}
    for arm in file.arm:
        own = merged(merged(base, merged(arm.settings, scale.arm.get(arm.name, {}))), given)
        configs[arm.name] = convert(own, RunConfig, source=f"{where}, arm `{arm.name}`")
    if settings.baseline:
        _require(settings.baseline, [arm.name for arm in arms], "baseline arm", where)
    engines = _engines(merged(file.engines, scale.engines), judge, threats, arms, where)
    known = (*accuracy_figures(threats), *COSTS, *engine_names(engines.names.values()))
    for figure in settings.figures:
        _require(figure, known, "figure", where)
    return Study(
        settings=settings,
        scale=name,
        judge=judge,
        engines=engines,
        threats=threats,
        arms=arms,
        configs=configs,
    )


def _engines(
    table: Plain,
    judge: JudgeSettings,
    threats: tuple[StudyThreat, ...],
    arms: tuple[Arm, ...],
    where: str,
) -> EngineSettings:
    """Read [engines], and put in the threat and the number of images that it leaves open."""
    place = f"{where} [engines]"
    engines = convert(table, EngineSettings, source=place)
    engines = replace(engines, images=engines.images or judge.images)
    in_pixels = [threat.name for threat in threats if threat.model.protocol == "pixel"]
    if engines.threat:
        _require(engines.threat, in_pixels, "threat in pixel units", place)
    if not engines.targets:
        return engines
    taken = {threat.name for threat in threats} & {TWIN, *engines.names.values()}
    if taken:
        raise ConfigError(f"{place}: a threat is called `{min(taken)}`, as its figures are")
    if not in_pixels:
        raise ConfigError(f"{place}: engines are attacked in pixel units, and no threat is in them")
    if not any(arm.kind in KINDS_WITH_ENGINES for arm in arms):
        raise ConfigError(
            f"{place}: engines are made of networks of a space, and no arm has one",
            hint=f"arms of kind {' or '.join(KINDS_WITH_ENGINES)} have",
        )
    return replace(engines, threat=engines.threat or in_pixels[0])


def _threats(
    tables: tuple[Plain, ...], over: Mapping[str, Plain], judge: JudgeSettings, where: str
) -> tuple[StudyThreat, ...]:
    if not tables:
        raise ConfigError(f"{where} has no [[threat]]", hint='e.g. name = "pixel", eps = "8/255"')
    names = [str(table.get("name", "")) for table in tables]
    _refuse_twice(names, "threats", where)
    for name in over:
        _require(name, names, "threat", where)
    return tuple(
        _threat(merged(table, over.get(name, {})), judge, where)
        for name, table in zip(names, tables, strict=True)
    )


def _threat(table: Plain, judge: JudgeSettings, where: str) -> StudyThreat:
    """Take name and attacks out of a table; all else is the threat model."""
    name = table.get("name")
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise ConfigError(
            f"{where}: a [[threat]] needs a `name` of letters, digits, `-`, `_` and `+`, "
            f"not {name!r}"
        )
    place = f"{where}, threat `{name}`"
    attacks = convert(table.get("attacks", judge.attacks), tuple[str, ...], source=place)
    rest = {key: value for key, value in table.items() if key not in ("name", "attacks")}
    model = convert(rest, ThreatModel, source=place)
    _require_named(name, model.protocol, place)
    try:
        check_attacks(attacks, model)
    except ConfigError as error:
        raise ConfigError(f"{place}: {error.message}", hint=error.hint) from error
    return StudyThreat(name=name, attacks=attacks, model=model)


def _require_named(name: str, protocol: str, place: str) -> None:
    """Refuse a threat whose name does not say its protocol: it alone stands before every figure."""
    if (protocol == "normalized") != ("normalized" in name):
        normalized = protocol == "normalized"
        raise ConfigError(
            f'{place}: its protocol is "{protocol}", which its name must say, as it goes before '
            "every figure of the study",
            hint=f'name = "{name}-normalized"' if normalized else 'e.g. name = "pixel"',
        )


def _table(settings: Mapping[str, Any], section: str) -> Mapping[str, Any]:
    table = settings.get(section)
    return table if isinstance(table, Mapping) else {}


def _refuse_twice(names: list[str], what: str, source: str) -> None:
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ConfigError(f"{source}: two {what} are called `{twice[0]}`")


def _require(name: str, known: Iterable[str], what: str, source: str = "") -> None:
    """Refuse a name that there is not, and say which is nearest."""
    names = list(known)
    if name in names:
        return
    similar = nearest(name, names)
    hint = f"did you mean `{similar[0]}`?" if similar else f"known: {', '.join(names) or 'none'}"
    raise ConfigError(f"{source}{': ' * bool(source)}there is no {what} `{name}`", hint=hint)
