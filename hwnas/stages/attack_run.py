"""The work of `hwnas attack`: one model, each eps, each attack where it belongs, and checks."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from hwnas.core.errors import ConfigError, DataError
from hwnas.robustness.attack_records import (
    CLEAN,
    WORST_CASE,
    Access,
    AttackLine,
    AttackRecord,
    CheckLine,
    On,
)
from hwnas.robustness.attacks.registry import ATTACKS, check_attacks
from hwnas.robustness.attacks.table import run_attacks
from hwnas.robustness.checks import evaluation_checks
from hwnas.robustness.criteria import at_least, black_box_check, slack_of
from hwnas.robustness.evaluate import Accuracy, logits_from_runner, predictions_of
from hwnas.robustness.model_checks import check_model
from hwnas.robustness.signs import majority_of
from hwnas_export.onnxruntime_runner import OnnxRuntimeRunner
from hwnas_export.torch_from_onnx import TwinParity, check_twin

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from numpy.typing import NDArray
    from torch import nn

    from hwnas.core.progress import Progress
    from hwnas.data.images import ImageData
    from hwnas.robustness.attacks.table import AttackOutcome
    from hwnas.robustness.square import Predict
    from hwnas.robustness.threat import ThreatModel
    from hwnas.stages.attack_subjects import Subject
    from hwnas_export.runner import Runner

_AGREEMENT = 0.99
"""Share of images that twin and engine must decide alike, for the twin's figures to be its own."""
_CHECK_QUERIES = 1000
"""Queries of Square where it only checks another attack."""


@dataclass(slots=True, kw_only=True)
class AttackRun:
    """One call of `hwnas attack`.

    Attributes:
        subject: The model.
        data: The data set; its test images are attacked.
        source: How the data set was named.
        threats: Threat models that differ in eps alone.
        attacks: Names of attacks.
        n: Test images at most.
        seed: Seed of everything that is drawn.
        batch: Images at a time.
        queries: The most queries of Square per image.
        check_samples: Images that the attack is varied on.
        state: Where finished batches are kept.
        progress: Told of each step.
    """

    subject: Subject
    data: ImageData
    source: str
    threats: tuple[ThreatModel, ...]
    attacks: tuple[str, ...]
    n: int
    seed: int
    batch: int
    queries: int
    check_samples: int
    state: Path
    progress: Progress
    _kept: dict[str, NDArray[Any]] = field(default_factory=dict)
    _lines: list[AttackLine] = field(default_factory=list)
    _checks: list[CheckLine] = field(default_factory=list)

    def record(self) -> AttackRecord:
        """Attack and check. Raises as `hwnas.stages.attack.attack`."""
        with_gradients, by_scores = self._sorted_attacks()
        chosen = self.data.test.subset(self.n, torch.Generator().manual_seed(self.seed))
        images: NDArray[np.float32] = chosen.pixels().numpy()
        labels: NDArray[np.int64] = chosen.labels.numpy()
        if len(images) < self.n:
            self.progress.say(f"attack: there are only {len(images)} test images")
        module, engine = self.subject.module, self.subject.engine
        parity = None
        if engine is None:
            assert module is not None
            self._check_model(module, images, "model")
            self._each(images, labels, module, None, with_gradients, by_scores)
        else:
            with OnnxRuntimeRunner(engine, threads=self.subject.threads) as runner:
                self._check_shape(runner.input_shape)
                if module is not None:
                    parity = self._parity(engine, module, images)
                    self._check_model(module, images, "twin")
                self._check_model(self._predict(runner), images, "engine" if module else "model")
                self._each(images, labels, module, runner, with_gradients, by_scores)
        return AttackRecord(
            model=self.subject.name,
            kind=self.subject.kind,
            access=self._access,
            reason=self.subject.reason,
            parity=parity,
            data=self.source,
            classes=len(self.data.class_names),
            majority=majority_of(labels),
            lines=tuple(self._lines),
            checks=tuple(self._checks),
        )

    def save_images(self, path: Path) -> None:
        """Write the adversarial images: one array for each attack and eps, and the labels."""
        np.savez_compressed(path, allow_pickle=False, **self._kept)

    @property
    def _access(self) -> Access:
        if self.subject.module is None:
            return "black-box"
        return "white-box twin, black-box engine" if self.subject.engine else "white-box"

    def _sorted_attacks(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Return the attacks that take gradients, and those that take scores alone."""
        for threat in self.threats:
            check_attacks(self.attacks, threat)
            if threat.protocol == "normalized" and self.subject.engine is not None:
                raise ConfigError(
                    'protocol "normalized" perturbs what lies behind the normalization, which an '
                    "engine does not show",
                    hint="attack the trained network it was made from",
                )
        by_scores = tuple(name for name in self.attacks if ATTACKS[name].black_box)
        with_gradients = tuple(name for name in self.attacks if name not in by_scores)
        if with_gradients and self.subject.module is None:
            raise ConfigError(
                f"{with_gradients[0]} needs gradients, and {self.subject.name} has none here: "
                f"{self.subject.reason}",
                hint="attack it by its scores: --attacks square",
            )
        return with_gradients, by_scores

    def _check_shape(self, shape: tuple[int | None, int, int, int]) -> None:
        if shape[1:] != self.data.image_shape:
            taken, given = ("x".join(map(str, each)) for each in (shape[1:], self.data.image_shape))
            raise ConfigError(
                f"{self.subject.name} takes images of {taken}, {self.data.name} has {given}",
                hint="set `image_size` in [data] of --config, or name the images it was trained on",
            )

    def _check_model(self, model: nn.Module | Predict, images: NDArray[np.float32], on: On) -> None:
        few = images[: self.check_samples]
        try:
            facts = check_model(model, few, classes=len(self.data.class_names), batch=self.batch)
        except DataError:
            raise
        except (RuntimeError, ValueError, TypeError) as error:  # of code that is not ours
            shape = "x".join(map(str, images.shape[1:]))
            reason = str(error).strip().partition("\n")[0]
            raise ConfigError(
                f"{self.subject.name} cannot take images of {shape}: {type(error).__name__}: "
                f"{reason}",
                hint="set `image_size` in [data] of --config, or name the images it was trained on",
            ) from error
        if facts.training_parts:
            self.progress.say(
                f"attack: {len(facts.training_parts)} parts of {self.subject.name} were in train "
                "mode; it is attacked in eval mode"
            )
        self._checks += [CheckLine.from_check(check, on=on) for check in facts.checks()]

    def _parity(self, engine: bytes, module: nn.Module, images: NDArray[np.float32]) -> TwinParity:
        parity = check_twin(engine, module, images[: self.check_samples], batch=self.batch)
        check = at_least(
            "twin_agreement",
            parity.agreement,
            _AGREEMENT,
            unit="of images",
            meaning="the twin decides otherwise than the engine: figures on the twin are not the "
            "engine's; trust those on the engine",
        )
        self._checks.append(CheckLine.from_check(check, on="twin"))
        return parity

    def _each(
        self,
        images: NDArray[np.float32],
        labels: NDArray[np.int64],
        module: nn.Module | None,
        runner: Runner | None,
        with_gradients: tuple[str, ...],
        by_scores: tuple[str, ...],
    ) -> None:
        """Attack with each eps, what has gradients and what is deployed."""
        self._kept["labels"] = labels
        for number, threat in enumerate(self.threats):
            if len(self.threats) > 1:
                self.progress.say(f"attack: eps {_text(threat)}")
            state = self.state / f"eps-{number}"
            replayed: dict[str, NDArray[np.float32]] = {}
            if module is not None:
                on: On = "twin" if runner else "model"
                names = with_gradients if runner else self.attacks
                if names:
                    outcome = self._attacked(module, images, labels, threat, names, state / "twin")
                    self._tell(outcome, threat, on)
                    self._evaluate(module, images, labels, threat, outcome, state, on)
                    replayed = outcome.images
            if runner is not None:
                on = "engine" if module is not None else "model"
                self._engine(runner, images, labels, threat, replayed, by_scores, state, on)

    def _engine(
        self,
        runner: Runner,
        images: NDArray[np.float32],
        labels: NDArray[np.int64],
        threat: ThreatModel,
        replayed: Mapping[str, NDArray[np.float32]],
        by_scores: tuple[str, ...],
        state: Path,
        on: On,
    ) -> None:
        """Replay the twin's examples on an engine, and attack it by its scores."""
        predict = self._predict(runner)
        flags = {}
        for name, points in replayed.items():
            flags[name] = predictions_of(predict(points)) != labels
        clean = predictions_of(predict(images)) != labels
        rows = [self._line(CLEAN, ~clean, threat, on)]
        for name, broken in flags.items():
            settings = "the twin's examples, replayed"
            rows.append(self._line(name, ~(broken | clean), threat, on, settings=settings))
        outcome: AttackOutcome | None = None
        scored: dict[str, NDArray[np.bool_]] = {}
        if by_scores:
            outcome = self._attacked(predict, images, labels, threat, by_scores, state / "engine")
            scored = outcome.flags
            rows += self._rows(outcome, threat, on)
        worst = np.logical_or.reduce([clean, *flags.values(), *scored.values()])
        rows.append(self._line(WORST_CASE, ~worst, threat, on))
        self._lines += rows
        if not replayed and outcome is not None:
            self._evaluate(predict, images, labels, threat, outcome, state, on)
        elif flags and scored:
            check = black_box_check(
                np.logical_or.reduce([clean, *flags.values()]),
                np.logical_or.reduce(list(scored.values())),
                slack_of(len(labels)),
            )
            self._checks.append(CheckLine.from_check(check, on=on, eps=_text(threat)))

    def _attacked(
        self,
        model: nn.Module | Predict,
        images: NDArray[np.float32],
        labels: NDArray[np.int64],
        threat: ThreatModel,
        names: tuple[str, ...],
        state: Path,
    ) -> AttackOutcome:
        outcome = run_attacks(
            model, images, labels, threat, attacks=names, seed=self.seed, batch=self.batch,
            queries=self.queries, state=state, progress=self.progress,
        )  # fmt: skip
        for name, points in outcome.images.items():
            self._kept[f"{name} {_text(threat)}".replace("/", "_")] = points
        return outcome

    def _evaluate(
        self,
        model: nn.Module | Predict,
        images: NDArray[np.float32],
        labels: NDArray[np.int64],
        threat: ThreatModel,
        outcome: AttackOutcome,
        state: Path,
        on: On,
    ) -> None:
        if threat.eps_pixels > 0:
            few = min(self.check_samples, len(images))
            self.progress.say(f"attack: varied on {few} images, to check it")
        found = evaluation_checks(
            model, images, labels, threat, outcome, batch=self.batch, seed=self.seed,
            samples=self.check_samples, queries=min(self.queries, _CHECK_QUERIES),
            state=state / "checks", progress=self.progress,
        )  # fmt: skip
        self._checks += [CheckLine.from_check(each, on=on, eps=_text(threat)) for each in found]

    def _tell(self, outcome: AttackOutcome, threat: ThreatModel, on: On) -> None:
        table = outcome.table
        self._lines += [
            self._of(CLEAN, table.clean, threat, on),
            *self._rows(outcome, threat, on),
            self._of(WORST_CASE, table.worst_case, threat, on),
        ]

    def _rows(self, outcome: AttackOutcome, threat: ThreatModel, on: On) -> list[AttackLine]:
        return [
            self._of(
                row.attack, row.accuracy, threat, on,
                seconds=row.seconds, queries=row.queries, settings=row.settings,
            )
            for row in outcome.table.rows
        ]  # fmt: skip

    def _line(
        self,
        name: str,
        right: NDArray[np.bool_],
        threat: ThreatModel,
        on: On,
        *,
        settings: str = "",
    ) -> AttackLine:
        return self._of(name, Accuracy.from_flags(right), threat, on, settings=settings)

    def _of(
        self,
        name: str,
        accuracy: Accuracy,
        threat: ThreatModel,
        on: On,
        *,
        seconds: float | None = None,
        queries: int | None = None,
        settings: str = "",
    ) -> AttackLine:
        return AttackLine(
            attack=name,
            on=on,
            accuracy=accuracy.value,
            low=accuracy.low,
            high=accuracy.high,
            n=accuracy.n,
            norm=threat.norm,
            eps=_text(threat),
            protocol=threat.protocol,
            seed=self.seed,
            seconds=seconds,
            queries=queries,
            settings=settings,
        )

    def _predict(self, runner: Runner) -> Predict:
        return lambda images: logits_from_runner(runner, images, batch=self.batch)


def _text(threat: ThreatModel) -> str:
    """Write eps as it was written."""
    return threat.eps if isinstance(threat.eps, str) else f"{threat.eps:g}"
