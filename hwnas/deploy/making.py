"""Engines from ONNX models: built, given the settings that were measured to be best, described.

`hwnas export` makes them from a network, `hwnas rebuild` from a bundle; only where their models
come from differs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, final

from hwnas.core.artifacts import sha256_of
from hwnas.core.decoding import encode_json
from hwnas.core.environment import this_device
from hwnas.core.progress import SILENT
from hwnas.deploy.choices import chosen_session, latency_choice
from hwnas.deploy.engine_targets import (
    check_buildable,
    fp32_target,
    has_sessions,
    is_tensorrt,
    model_precision,
    runtime_packages,
)
from hwnas.deploy.engines import runner_for
from hwnas.deploy.plans import AHEAD_OF_TIME, plan_place
from hwnas.deploy.records import ENGINES_FOLDER, SIDECAR_FILE, EngineCard, LeftOut
from hwnas_profilers.targets import RUNTIMES

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from hwnas.core.progress import Progress
    from hwnas.deploy.records import CalibrationData, LatencyChoice
    from hwnas_export.runner import Runner
    from hwnas_export.tensorrt_plan import GivenPlan

SOURCE_FILE = "model.onnx"
"""The portable model in FP32, from which all others are converted."""

PLAN_FILE = "engine.plan"
_ANY_BATCH = 65_536


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineModel:
    """The ONNX model that an engine is made from.

    Attributes:
        content: The serialized model, in the engine's precision.
        calibration: What its ranges come from; None where nothing is quantized.
    """

    content: bytes
    calibration: CalibrationData | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """What the engines of one bundle have in common.

    Attributes:
        threads: Threads within an operator, on a CPU.
        batch: Images per call for which settings are chosen and latencies compared.
        batches: Smallest, most frequent and largest batch of TensorRT's engines.
        compute_capabilities: GPUs that TensorRT for RTX builds for; empty for the one that is here,
            or, where there is none, for `AHEAD_OF_TIME`.
        class_names: One per logit.
        image_shape: (channels, height, width).
        pixel_range: Values that pixels take.
        keep_slower: Keep engines that are no faster than those in FP32.
    """

    threads: int
    batch: int
    batches: tuple[int, int, int]
    compute_capabilities: tuple[str, ...] = ()
    class_names: tuple[str, ...]
    image_shape: tuple[int, int, int]
    pixel_range: tuple[float, float]
    keep_slower: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Made:
    """Engines that were made.

    Attributes:
        cards: Their sidecars; at least one.
        left_out: Those that do not pay.
    """

    cards: tuple[EngineCard, ...]
    left_out: tuple[LeftOut, ...]


def make_engines(
    folder: Path,
    targets: Sequence[str],
    model_of: Callable[[str], EngineModel],
    recipe: Recipe,
    *,
    progress: Progress = SILENT,
) -> Made:
    """Make engines, and write them with their sidecars into a bundle's folder.

    An engine in a lower precision that is not clearly faster than the one in FP32 gains nothing for
    what it loses: it is said, and the one in FP32 takes its place.

    Args:
        folder: The bundle's folder; it holds `model.onnx`.
        targets: Targets of this machine that take ONNX models; TensorRT's also without a GPU, where
            TensorRT for RTX is installed.
        model_of: Gives a target's model. That of a target in FP32 is the bundle's `model.onnx`.
        recipe: What they have in common.
        progress: Where to report.

    Raises:
        TargetError: A target is unknown, takes no ONNX model or cannot be used here.
        ExportError: A runtime refuses a model.
        MissingDependencyError: A runtime is not installed.
    """
    workshop = _Workshop(folder, model_of, recipe, progress)
    waiting = list(dict.fromkeys(targets))
    for target in waiting:
        check_buildable(target)  # all, before minutes are spent on the first
    cards: dict[str, EngineCard] = {}
    left_out = []
    while waiting:
        target = waiting.pop(0)
        if target in cards:
            continue
        card = workshop.card(target)
        if card.choice is not None and not card.choice.pays:
            kept = fp32_target(target)
            progress.say(_slower(target, kept, card.choice, recipe.keep_slower))
            if not recipe.keep_slower:
                left_out.append(LeftOut(target=target, kept=kept, choice=card.choice))
                waiting.insert(0, kept)
                continue
        cards[target] = card
        workshop.write(card)
    return Made(cards=tuple(cards.values()), left_out=tuple(left_out))


@final
class _Workshop:
    """What is known of targets while the engines of one bundle are made."""

    def __init__(
        self,
        folder: Path,
        model_of: Callable[[str], EngineModel],
        recipe: Recipe,
        progress: Progress,
    ) -> None:
        self._folder = folder
        self._model_of = model_of
        self._recipe = recipe
        self._progress = progress
        self._models: dict[str, EngineModel] = {}
        self._sessions: dict[str, dict[str, str]] = {}
        self._plans: dict[str, GivenPlan] = {}

    def card(self, target: str) -> EngineCard:
        """Build an engine, choose its settings, and time it beside the one in FP32."""
        recipe, runtime = self._recipe, RUNTIMES[target]
        runs = check_buildable(target)
        model = self._model(target)
        plan = self._plan(target, ahead=not runs) if is_tensorrt(target) else None
        inner = f"{ENGINES_FOLDER}/{target}"
        return EngineCard(
            target=target,
            precision=model_precision(target),
            model=SOURCE_FILE if model_precision(target) == "fp32" else f"{inner}/model.onnx",
            model_sha256=sha256_of(model.content),
            source_sha256=sha256_of(self._model(fp32_target(target)).content),
            plan=f"{inner}/{PLAN_FILE}" if plan else "",
            plan_sha256=plan.sha256 if plan else "",
            batches=recipe.batches if plan else (1, recipe.batch, _ANY_BATCH),
            threads=recipe.threads,
            session=self._session(target),
            packages=runtime_packages(target),
            device=this_device(runtime.device) if runs else None,
            compute_capabilities=plan.compute_capabilities if plan else (),
            class_names=recipe.class_names,
            image_shape=recipe.image_shape,
            pixel_range=recipe.pixel_range,
            calibration=model.calibration,
            choice=self._choice(target) if runs and runtime.precision != "fp32" else None,
        )

    def write(self, card: EngineCard) -> None:
        """Write an engine's files and its sidecar."""
        path = self._folder / ENGINES_FOLDER / card.target
        path.mkdir(parents=True)
        if card.model != SOURCE_FILE:
            (self._folder / card.model).write_bytes(self._model(card.target).content)
        if card.plan:
            (self._folder / card.plan).write_bytes(self._plans[card.target].content)
        (path / SIDECAR_FILE).write_bytes(encode_json(card, indent=2))

    def _plan(self, target: str, *, ahead: bool = False) -> GivenPlan:
        """Build a plan, or return the one that was built."""
        if target not in self._plans:
            from hwnas_export.tensorrt_engine import EngineSettings, engine_from_onnx
            from hwnas_export.tensorrt_plan import GivenPlan

            recipe = self._recipe
            named = recipe.compute_capabilities or (AHEAD_OF_TIME if ahead else ())
            where = f" for compute capability {', '.join(named)}" if named else ""
            if ahead:
                where += ", ahead of time: it cannot run here"
            self._progress.say(f"building {target}{where}")
            content = engine_from_onnx(
                self._model(target).content,
                settings=EngineSettings(batches=recipe.batches, compute_capabilities=named),
            )
            self._plans[target] = GivenPlan(
                content=content,
                sha256=sha256_of(content),
                compute_capabilities=named or (plan_place().compute_capability,),
            )
        return self._plans[target]

    def _model(self, target: str) -> EngineModel:
        key = target if model_precision(target) != "fp32" else "fp32"
        if key not in self._models:
            self._models[key] = self._model_of(target)
        return self._models[key]

    def _session(self, target: str) -> dict[str, str]:
        if not has_sessions(target):
            return {}
        if target not in self._sessions:
            from hwnas_export.onnxruntime_session import session_candidates

            self._sessions[target] = chosen_session(
                lambda session: self._runner(target, session),
                session_candidates(self._recipe.threads),
                batch=self._recipe.batch,
                progress=self._progress,
            )
        return self._sessions[target]

    def _choice(self, target: str) -> LatencyChoice:
        rival = fp32_target(target)
        with (
            self._runner(target, self._session(target)) as engine,
            self._runner(rival, self._session(rival)) as fp32,
        ):
            return latency_choice(engine, fp32, batch=self._recipe.batch, progress=self._progress)

    def _runner(self, target: str, session: Mapping[str, str]) -> Runner:
        recipe = self._recipe
        return runner_for(
            target,
            self._model(target).content,
            threads=recipe.threads,
            session=session,
            batches=recipe.batches,
            plan=self._plan(target) if is_tensorrt(target) else None,
        )


def _slower(target: str, kept: str, choice: LatencyChoice, keep: bool) -> str:
    took = f"{choice.engine.median_us:.4g} us" + (
        f" [{choice.engine.low_us:.4g}, {choice.engine.high_us:.4g}]"
    )
    fp32 = f"{choice.fp32.median_us:.4g} us [{choice.fp32.low_us:.4g}, {choice.fp32.high_us:.4g}]"
    outcome = "it is kept all the same" if keep else "it is left out (--keep-slower would keep it)"
    return (
        f"{target} is no faster than {kept} here, {took} against {fp32} at batch {choice.batch}: "
        f"{outcome}"
    )
