"""What work a study's arms consist of, and what each piece of it depends on.

    table ----------+-> genotype -+-> train -+-> attacks, one per threat
    teacher -> search -> derive --+          +-> engine, one per target

A piece's key holds everything that it depends on, so that arms and seeds that agree in that share
it, and a study whose settings were edited does anew only what they touch.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, final

from hwnas.core.artifacts import MANIFEST
from hwnas.study.dependencies import (
    data_of,
    needs_search,
    plain,
    settings_of,
    space_of,
    teacher_inputs,
)
from hwnas.study.work import Work, key_of

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from hwnas.core.progress import Progress
    from hwnas.stages.config import RunConfig
    from hwnas.study.plan import Arm, Study, StudyThreat

WORK = "work"


@dataclass(frozen=True, slots=True, kw_only=True)
class Goal:
    """An arm in a seed: the work that its figures come from.

    Attributes:
        arm: The arm.
        seed: The seed.
        attacks: By threat, the attacks on its network.
        engines: By target, an engine of its network, judged; empty where there is none.
        stages: What made the network, by stage, in order.
        trained: The piece that trained the network.
        genotype: The piece that holds its architecture; None of a network that has no genotype.
        config: Its settings.
    """

    arm: Arm
    seed: int
    attacks: dict[str, Work]
    engines: dict[str, Work]
    stages: dict[str, Work]
    trained: Work
    genotype: Work | None
    config: RunConfig

    @property
    def key(self) -> str:
        """Tells its figures from those of other settings."""
        return key_of("goal", {}, [work.key for work in self.works])

    @property
    def works(self) -> list[Work]:
        """What must be done for its figures."""
        return [*self.attacks.values(), *self.engines.values()]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Table:
    """A latency table: given, or to be measured."""

    path: Path
    key: str
    works: tuple[Work, ...]


@final
class Workshop:
    """Makes the work of a study.

    Args:
        study: The study.
        store: Folder of the pieces of work. Studies may share one: what they have in common is done
            once.
        measure: Whether derived networks are measured: where other processes compute beside it, no
            measurement is worth much, and predictions stand.
    """

    def __init__(self, study: Study, store: Path, *, measure: bool = True) -> None:
        self._study, self._store = study, store
        self._measure = measure and study.settings.measure == "both"
        self._works: dict[str, Work] = {}

    def goals(self) -> list[Goal]:
        """Return every arm in every seed, all arms of the first seed first.

        Raises:
            ConfigError: An arm names an architecture that its space has not.
            InputFileError: The images, or a table that is given, cannot be read.
            TargetError: An engine that is still to be judged cannot be made or run here.
        """
        study = self._study
        goals = [self._goal(arm, seed) for seed in study.settings.seeds for arm in study.arms]
        for target in study.engines.targets:
            works = [goal.engines[target] for goal in goals if target in goal.engines]
            if not all(work.done() for work in works):
                _check_runs(target)
        return goals

    def _goal(self, arm: Arm, seed: int) -> Goal:
        config = self._study.config_of(arm, seed)
        if arm.kind == "teacher":
            trained = self._teacher(config)
            stages, genotype = {"teacher": trained}, None
        elif arm.kind == "handcrafted":
            stages = self._handcrafted(arm, config)
            trained, genotype = stages["train"], None
        else:
            stages = self._searched(arm, config)
            trained, genotype = stages["train"], stages["genotype"]
        return Goal(
            arm=arm,
            seed=seed,
            attacks={
                threat.name: self._attacks(arm, config, threat, trained)
                for threat in self._study.threats
            },
            engines={
                target: self._engine(config, target, trained)
                for target in (self._study.engines.targets if genotype is not None else ())
            },
            stages=stages,
            trained=trained,
            genotype=genotype,
            config=config,
        )

    def _searched(self, arm: Arm, config: RunConfig) -> dict[str, Work]:
        """Return the stages of an arm whose network is one of a space."""
        teacher = self._teacher(self._study.teacher_config_of(arm, config.seed))
        table = self._table(self._study.configs[arm.name])  # one for all seeds
        search = None
        if arm.kind == "search" or needs_search(config):
            search = self._search(config, table, teacher)
        if arm.kind == "search":
            assert search is not None
            genotype = self._derived(config, table, search)
        else:
            genotype = self._given(arm, config, table, teacher, search)
        train = self._trained(config, genotype, teacher, search)
        stages = {"teacher": teacher, "table": table.works[0] if table.works else None,
                  "search": search, "genotype": genotype, "train": train}  # fmt: skip
        return {name: work for name, work in stages.items() if work is not None}

    # Pieces of work

    def _teacher(self, config: RunConfig) -> Work:
        from hwnas.stages.teacher import make_teacher, teacher_settings

        settings = teacher_settings(config) | {"data": data_of(config.data).key}
        key = key_of("teacher", settings | teacher_inputs(config))
        path = self._path(key)
        return self._work(
            key,
            path,
            lambda progress: make_teacher(config, path, progress=progress),
            training="teacher",
        )

    def _table(self, config: RunConfig) -> _Table:
        from pathlib import Path

        from hwnas.core.artifacts import sha256_of_file
        from hwnas.pipeline import calibrated_table
        from hwnas_profilers.table import LatencyTable

        space = space_of(config)
        if config.table.path:
            path = Path(config.table.path)
            LatencyTable.read(path).require(
                target=config.target.name,
                threads=config.target.threads,
                space_fingerprint=space.spec.fingerprint,
            )
            return _Table(path=path, key=sha256_of_file(path), works=())
        depends_on = {
            "target": plain(config.target),
            "space": plain(space.spec),
            "table": plain(config.table),
            "seed": config.seed,
        }
        key = key_of("table", depends_on)
        path = self._path(key).with_suffix(".jsonl")
        marker = path.with_suffix(".done")

        def make(progress: Progress) -> None:
            calibrated_table(config, space, path, progress)
            marker.touch()

        work = self._work(key, path, make, product=marker)
        return _Table(path=path, key=key, works=(work,))

    def _search(self, config: RunConfig, table: _Table, teacher: Work) -> Work:
        from hwnas.stages.search import make_search

        depends_on = settings_of(config, "data", "threat", "budget", "search") | {
            "table": table.key
        }
        key = key_of("search", depends_on, [teacher.key])
        path = self._path(key)
        return self._work(
            key,
            path,
            lambda progress: make_search(config, table.path, teacher.path, path, progress=progress),
            needs=(*table.works, teacher),
            training="search",
        )

    def _derived(self, config: RunConfig, table: _Table, search: Work) -> Work:
        depends_on = settings_of(config, "budget") | {
            "table": table.key,
            "timing": plain(config.table.network_timing),
            "measured": self._study.settings.measure == "both",
        }
        key = key_of("derive", depends_on, [search.key])
        path = self._path(key).with_suffix(".json")

        def make(progress: Progress) -> None:
            from hwnas.latency.resources import SpaceCosts
            from hwnas.stages.derive import make_derivation
            from hwnas.stages.spaces import space_of_table
            from hwnas.study.latency import is_here
            from hwnas_profilers.table import LatencyTable

            read = LatencyTable.read(table.path)
            measure = self._measure and is_here(read)
            if not measure:
                progress.say(f"study: {key} is derived by predictions, not measured here")
            make_derivation(
                search.path,
                table.path,
                config.budget.resolve(SpaceCosts(space_of_table(read), read)),
                path,
                measure=measure,
                settings=config.table.network_timing,
                progress=progress,
            )

        return self._work(key, path, make, product=path, needs=(*table.works, search))

    def _given(
        self, arm: Arm, config: RunConfig, table: _Table, teacher: Work, search: Work | None
    ) -> Work:
        from hwnas.study.architectures import check_architecture
        from hwnas.study.given import make_given

        check_architecture(arm.genotype, space_of(config))
        tutored = search if config.search.tutors == "searched" else None
        depends_on = settings_of(config, "budget") | {
            "table": table.key,
            "genotype": arm.genotype,
            "tutors": config.search.tutors,
            "attention_size": config.search.attention_size,
        }
        needs = (*table.works, teacher, *([tutored] if tutored else []))
        key = key_of("genotype", depends_on, [need.key for need in needs])
        path = self._path(key).with_suffix(".json")
        return self._work(
            key,
            path,
            lambda progress: make_given(
                arm.genotype,
                config,
                table.path,
                teacher.path,
                tutored.path if tutored else None,
                path,
            ),
            product=path,
            needs=needs,
        )

    def _trained(
        self, config: RunConfig, genotype: Work, teacher: Work, search: Work | None
    ) -> Work:
        from hwnas.stages.train import make_network

        begun = search if config.train.init == "supernet" else None
        needs = (genotype, teacher, *([begun] if begun else []))
        key = key_of(
            "train", settings_of(config, "data", "threat", "train"), [n.key for n in needs]
        )
        path = self._path(key)
        return self._work(
            key,
            path,
            lambda progress: make_network(
                config,
                genotype.path,
                teacher.path,
                begun.path if begun else None,
                path,
                progress=progress,
            ),
            needs=needs,
            training="train",
        )

    def _handcrafted(self, arm: Arm, config: RunConfig) -> dict[str, Work]:
        from hwnas.space.handcrafted.registry import check_name
        from hwnas.study.handcrafted import check_handcrafted, make_handcrafted

        assert isinstance(arm.genotype, str)
        name = arm.genotype
        check_name(name)
        check_handcrafted(config, arm.name)
        teacher = self._teacher(self._study.teacher_config_of(arm, config.seed))
        depends_on = settings_of(config, "data", "threat", "train") | {
            "network": name,
            "width": arm.width,
            "tutors": config.search.tutors,
            "attention_size": config.search.attention_size,
        }
        key = key_of("train", depends_on, [teacher.key])
        path = self._path(key)
        work = self._work(
            key,
            path,
            lambda progress: make_handcrafted(
                config, name, arm.width, teacher.path, path, progress=progress
            ),
            needs=(teacher,),
            training="train",
        )
        return {"teacher": teacher, "train": work}

    def _attacks(self, arm: Arm, config: RunConfig, threat: StudyThreat, trained: Work) -> Work:
        from hwnas.study.judge import make_attacks

        judge = replace(self._study.judge, attacks=threat.attacks)
        depends_on = {
            "seed": config.seed,
            "data": data_of(config.data).key,
            "threat": plain(threat.model),
            "judge": plain(judge),
        }
        key = key_of("attacks", depends_on, [trained.key])
        path = self._path(key)
        state = path.with_name(f"{key}.state")
        return self._work(
            key,
            path,
            lambda progress: make_attacks(
                arm.kind, trained.path, config, threat, judge, path, state, progress=progress
            ),
            needs=(trained,),
            attacks=True,
        )

    def _engine(self, config: RunConfig, target: str, trained: Work) -> Work:
        from hwnas.study.engines import judged_path, make_judged_engine

        engines = self._study.engines
        threat = next(each for each in self._study.threats if each.name == engines.threat).model
        depends_on = {
            "seed": config.seed,
            "data": data_of(config.data).key,
            "threat": plain(threat),
            "target": target,
            "images": engines.images,
            "queries": engines.queries,
            "steps": engines.steps,
            "calibration_images": engines.calibration_images,
            "verify": plain(config.verify),
        }
        key = key_of("engine", depends_on, [trained.key])
        path = self._path(key)
        out = judged_path(path)
        return self._work(
            key,
            path,
            lambda progress: make_judged_engine(
                trained.path, config, threat, engines, target, path, out, progress=progress
            ),
            product=out,
            needs=(trained,),
        )

    def _work(
        self,
        key: str,
        path: Path,
        make: Callable[[Progress], Any],
        *,
        product: Path | None = None,
        needs: tuple[Work, ...] = (),
        training: str = "",
        attacks: bool = False,
    ) -> Work:
        """Return the work of a key, the same for all who ask."""
        there = product or path / MANIFEST
        work = Work(
            stage=key.partition("-")[0],
            key=key,
            path=path,
            done=there.is_file,
            make=make,
            needs=needs,
            training=training,
            attacks=attacks,
        )
        return self._works.setdefault(key, work)

    def _path(self, key: str) -> Path:
        return self._store / WORK / key


def _check_runs(target: str) -> None:
    """Refuse a target whose engines cannot be judged here."""
    from hwnas.core.errors import TargetError
    from hwnas.deploy.engine_targets import check_buildable

    if not check_buildable(target):
        raise TargetError(
            f"an engine for target `{target}` can be made here, but not run: it cannot be judged",
            hint="take it out of `targets` in [engines], or run the study on its device",
        )
