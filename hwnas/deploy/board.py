"""A bundle on a board: which of its models is built there, and what is left there if asked for."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NoReturn

import numpy as np

from hwnas.core.artifacts import CHECKSUMS, sha256_of
from hwnas.core.decoding import encode_json

# Not for type checking alone: msgspec evaluates the annotations when it decodes.
from hwnas.core.environment import Device
from hwnas.core.errors import TargetError
from hwnas.deploy.conversion import Conversion
from hwnas.deploy.engines import engine_card, engine_cards, model_of
from hwnas.deploy.example import EXAMPLE_FILE, example_py
from hwnas.deploy.making import SOURCE_FILE
from hwnas.deploy.records import ENGINES_FOLDER, SIDECAR_FILE, EngineCard
from hwnas.verify.speed import Speed, Throughput, tail_of
from hwnas_profilers.records import Session
from hwnas_profilers.timing import RoundLog, TimingSettings

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from hwnas_profilers.remote_runner import RemoteRunner
    from hwnas_profilers.targets import Target

_TAIL_US = 2e6
_LEAST_CALLS, _MOST_CALLS = 100, 1000  # of a hundred, the 99th percentile is the second slowest


@dataclass(frozen=True, slots=True, kw_only=True)
class BoardRecord:
    """Where and how an engine was verified.

    Attributes:
        target: The target, with the way to the board.
        device: The board.
        packages: Versions of the runtime and of numpy there.
        engine: What was built there, as its sidecar describes it.
        model_bytes: Size of the model.
        measuring: How quiet the board was while the latency was measured, and its temperature and
            throttling then and, among the facts, at the begin and at the end of all.
        sent_bytes: What was sent, before the encryption of ssh.
        received_bytes: What was received.
        seconds: How long all took.
        kept: Folder on the board that the engine was left in; empty where nothing was left.
    """

    target: str
    device: Device
    packages: dict[str, str]
    engine: EngineCard
    model_bytes: int
    measuring: Session
    sent_bytes: int
    received_bytes: int
    seconds: float
    kept: str = ""


def model_for(bundle: Path, target: Target, portable: EngineCard) -> tuple[EngineCard, bytes]:
    """Choose the model of a bundle that a board is to build, and read it.

    Where the bundle holds no engine for the target, FP32 is built from the portable model, and FP16
    from its conversion, which needs nothing else: a host without TensorRT can serve a Jetson. INT8
    takes ranges of held-out images, which `hwnas export` has.

    Args:
        bundle: A bundle whose hashes have been checked.
        target: The board's target.
        portable: What is known of the model in FP32, which every runtime can build.

    Returns:
        Its sidecar, for this target, and the serialized model.

    Raises:
        TargetError: The bundle holds no model in the target's precision.
        ArtifactError: The model is not the one that its sidecar describes.
        ExportError: The portable model cannot be converted.
    """
    precision = target.runtime.precision
    if target.name in {card.target for card in engine_cards(bundle)}:
        card = engine_card(bundle, target.name)
        # What was built and chosen on another device is no part of what is built there.
        built = replace(
            card, plan="", plan_sha256="", session={}, packages={}, device=None, choice=None,
            compute_capabilities=(), figures=None,
        )  # fmt: skip
        return built, model_of(bundle, built)
    if precision not in ("fp32", "fp16"):
        raise TargetError(
            f"{bundle} holds no engine for target `{target.name}`",
            hint="make one, even if it is slower here than FP32: hwnas export --targets "
            f"{target.name} --keep-slower",
        )
    source = model_of(bundle, portable)
    card = replace(portable, target=target.name, precision=precision)
    if precision == "fp32":
        return card, source
    content = Conversion(source, _no_images)(target.name).content
    place = f"{ENGINES_FOLDER}/{target.name}/{SOURCE_FILE}"
    return replace(card, model=place, model_sha256=sha256_of(content)), content


def _no_images() -> NoReturn:
    raise AssertionError("half precision needs no ranges")


def files_to_keep(card: EngineCard, model: bytes) -> dict[str, bytes]:
    """Return what is needed on a board to run an engine, by name, as within a bundle.

    Args:
        card: The engine's sidecar, as it is to be there.
        model: Its model.
    """
    files = {
        card.model: model,
        f"{ENGINES_FOLDER}/{card.target}/{SIDECAR_FILE}": encode_json(card, indent=2),
    }
    if card.target.startswith("onnxruntime"):  # TensorRT's example runs a plan: none is kept
        files[EXAMPLE_FILE] = example_py(card).encode()
    lines = (f"{sha256_of(content)}  {name}\n" for name, content in sorted(files.items()))
    return {**files, CHECKSUMS: "".join(lines).encode()}


def speed_on_board(
    runner: RemoteRunner,
    settings: TimingSettings,
    *,
    batch: int,
    batches: Sequence[int],
    log: RoundLog,
) -> Speed:
    """Measure on the board what `hwnas.verify.speed.measure_speed` measures on this machine.

    Args:
        runner: An active runner.
        settings: How exactly the latency is timed; throughput is with 5 % intervals.
        batch: Images per call that the latency is of; of a model with a fixed batch that one.
        batches: Batches to measure throughput at, likewise.
        log: Takes note of what the rounds of the latency were like.
    """
    fixed = runner.input_shape[0]
    one, usable = (fixed, [fixed]) if fixed else (batch, sorted({batch, *batches}))
    (latency,) = runner.time([one], settings, log=log)
    calls = int(np.clip(_TAIL_US / latency.median_us, _LEAST_CALLS, _MOST_CALLS))
    tail = tail_of(runner.time_calls(one, calls))
    quick = TimingSettings.quick(seed=settings.seed)
    timed = runner.time(usable, quick, log=RoundLog())
    return Speed(
        target=runner.name,
        latency=latency,
        tail=tail,
        throughput=tuple(
            Throughput(
                batch=each,
                call=call,
                images_per_s=1e6 * each / call.median_us,
                low=1e6 * each / call.high_us,
                high=1e6 * each / call.low_us,
            )
            for each, call in zip(usable, timed, strict=True)
        ),
    )
