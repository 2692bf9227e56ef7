"""`hwnas deploy`: a bundle's engine built and verified on a board, and left there if asked for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from hwnas.core.progress import SILENT, Progress

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from hwnas.data.images import Split
    from hwnas.deploy.board import BoardRecord
    from hwnas.deploy.records import EngineCard
    from hwnas.stages.bundle import Bundle
    from hwnas.verify.records import Verification, VerifySettings
    from hwnas_profilers.remote_runner import RemoteRunner
    from hwnas_profilers.targets import Target

KIND = "deploy"
VERIFICATION_FILE = "verification.json"
BOARD_FILE = "board.json"
_FLOAT_BYTES = 4
_MIB = 2**20
_SPARE_BYTES = 64 * 2**10  # for figures that the sidecar does not hold yet


@dataclass(frozen=True, slots=True, kw_only=True)
class DeployResult:
    """What was found on a bundle's engine on a board.

    Attributes:
        out: Folder of the figures.
        passed: Whether every gate was passed.
        board: The board, and what was built, sent and kept there.
        verification: The figures and gates.
    """

    out: str
    passed: bool
    board: BoardRecord
    verification: Verification


def deploy(
    bundle: Path,
    board: str,
    *,
    out: Path,
    keep: str | None = None,
    budget_ms: float | None = None,
    images: int | None = None,
    square_queries: int = 100,
    square_samples: int = 200,
    adaptive_steps: int = 20,
    adaptive_samples: int = 50,
    relative_width: float = 0.005,
    progress: Progress = SILENT,
) -> DeployResult:
    """Send a bundle's engine to a board, and build and verify it there.

    The board needs numpy and the runtime. It is given the model, and then images: test images,
    adversarial examples that are crafted here on the PyTorch twin, and the queries of attacks on
    the engine itself; it gives logits back, and measures the latency. Nothing is left there but
    what --keep asks for. A connection that is cut is gone on from.

    Args:
        bundle: Folder that `hwnas export` or `hwnas run` wrote.
        board: The board and the target on it, ssh://[user@]host[:port]/TARGET, e.g.
            ssh://pi@raspberrypi.local/onnxruntime-cpu.
        out: Folder for the figures and what the board says of itself.
        keep: Folder on the board to leave the engine in, with its sidecar and an example that runs
            it, once every gate is passed. It is replaced if it holds what was kept before.
        budget_ms: Bound on the latency there; by default the bundle's own.
        images: Test images to verify on, drawn at random; by default all of them.
        square_queries: Queries of the black box per image; each is an image that is sent.
        square_samples: Images that the black box attacks.
        adaptive_steps: Gradient steps of attacks made for the engine itself; each sends an image.
        adaptive_samples: Images that these attack.
        relative_width: The latency is known well enough once the 95 % interval of its median is
            narrower than this share of the median.
        progress: Where to report.

    Returns:
        The figures and gates, and the board.

    Raises:
        ConfigError: A number is out of range.
        ArtifactError: The bundle is none, or a file of it was changed.
        TargetError: The target is none of a board, the bundle has no model for it, or the board
            cannot be reached, lacks the runtime, was lost, or has no room.
        ExportError: The board's runtime refuses the model.
        GateFailedError: A gate was not passed. The figures are written, and are its `result`.
    """
    import time
    from dataclasses import replace

    from hwnas.core.artifacts import MANIFEST, ManifestDraft, check_place, new_artifact
    from hwnas.core.artifacts import sha256_of_file as hash_of
    from hwnas.core.decoding import encode_json
    from hwnas.core.errors import ConfigError, GateFailedError
    from hwnas.data.sources import load_data
    from hwnas.deploy.board import model_for
    from hwnas.stages.bundle import open_bundle
    from hwnas.stages.calls import call_text
    from hwnas.stages.checks import check_images_fit
    from hwnas_profilers.remote_runner import RemoteRunner

    began = time.monotonic()
    target = _board_target(board)
    asked = {
        "board": board,
        "keep": keep,
        "budget_ms": budget_ms,
        "images": images,
        "square_queries": square_queries,
        "square_samples": square_samples,
        "adaptive_steps": adaptive_steps,
        "adaptive_samples": adaptive_samples,
        "relative_width": relative_width,
    }
    if budget_ms is not None and not budget_ms > 0:
        raise ConfigError(f"budget_ms is {budget_ms}, not a time above 0")
    check_place(out)
    opened = open_bundle(bundle)
    card, model = model_for(bundle, target, _portable(opened))
    settings = replace(
        opened.card.verify,
        square_queries=square_queries,
        square_samples=square_samples,
        adaptive_steps=adaptive_steps,
        adaptive_samples=adaptive_samples,
        batch=min(opened.card.verify.batch, card.batches[2]),
    )
    data = load_data(opened.card.data)
    what = "the engine"
    check_images_fit(data, opened.card.image_shape, len(opened.card.class_names), what=what)
    test = _drawn(data.test, images, settings.seed)
    _say_what_is_sent(test[0], settings, len(model), progress)
    with RemoteRunner(
        target, model, threads=card.threads, batches=card.batches, progress=progress
    ) as runner:
        verification, record = _verified(
            runner, opened, card, model, test, settings,
            keep=keep, budget_ms=budget_ms, relative_width=relative_width, began=began,
            progress=progress,
        )  # fmt: skip
    draft = ManifestDraft(
        kind=KIND,
        call=call_text("deploy", bundle=bundle, out=out, **asked),
        settings=asked,
        inputs={"bundle": hash_of(bundle / MANIFEST)},
    )
    with new_artifact(out, draft) as folder:
        (folder / VERIFICATION_FILE).write_bytes(encode_json(verification, indent=2))
        (folder / BOARD_FILE).write_bytes(encode_json(record, indent=2))
    result = DeployResult(
        out=str(out), passed=verification.passed, board=record, verification=verification
    )
    try:
        verification.require()
    except GateFailedError as error:
        error.result = result
        if keep is not None:
            error.hint += f"; nothing was left in {keep} on the board"
        raise
    return result


def _board_target(board: str) -> Target:
    """Return the target on a board.

    Raises:
        TargetError: It is one of this machine, or cannot be used over ssh.
    """
    from hwnas.core.errors import TargetError
    from hwnas_profilers.targets import require_target

    target = require_target(board)
    if not target.destination:
        raise TargetError(
            f"`{board}` is a target of this machine, and no board",
            hint=f"name the board: ssh://[user@]host[:port]/{board}; on this machine: hwnas verify",
        )
    return target


def _portable(opened: Bundle) -> EngineCard:
    """Describe the model in FP32 that every bundle holds."""
    from hwnas.core.artifacts import sha256_of
    from hwnas.deploy.records import EngineCard
    from hwnas.stages.bundle import MODEL_FILE

    card, digest = opened.card, sha256_of(opened.model)
    return EngineCard(
        target=card.target,
        precision="fp32",
        model=MODEL_FILE,
        model_sha256=digest,
        source_sha256=digest,
        batches=(1, 1, card.verify.batch),
        threads=card.threads,
        class_names=card.class_names,
        image_shape=card.image_shape,
        pixel_range=card.pixel_range,
    )


def _drawn(
    split: Split, images: int | None, seed: int
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Return test images and labels, all or some.

    Raises:
        ConfigError: Fewer than one image is asked for.
    """
    import numpy as np

    from hwnas.core.errors import ConfigError
    from hwnas.stages.bundle import arrays_of

    pixels, labels = arrays_of(split)
    if images is None:
        return pixels, labels
    if images < 1:
        raise ConfigError(f"images is {images}, not at least 1")
    chosen = np.sort(np.random.default_rng(seed).permutation(len(labels))[:images])
    return pixels[chosen], labels[chosen]


def _say_what_is_sent(
    images: NDArray[np.float32], settings: VerifySettings, model_bytes: int, progress: Progress
) -> None:
    """Tell the most that will go over the wire: links to boards are slow, and may cost money."""
    count = len(images)
    times = 2 * count  # as they are, and with the twin's perturbations
    times += min(settings.square_samples, count) * (settings.square_queries + 3)
    # Two losses, the examples of the twin, and a look at the start and at the end of each.
    times += min(settings.adaptive_samples, count) * (2 * settings.adaptive_steps + 6)
    size = model_bytes + times * images[0].size * _FLOAT_BYTES
    progress.say(
        f"deploy: at most {size / _MIB:,.1f} MiB will be sent, as a rule a fraction of that; "
        "--images, --square-queries, --adaptive-steps and the like bound it"
    )


def _verified(
    runner: RemoteRunner,
    opened: Bundle,
    card: EngineCard,
    model: bytes,
    test: tuple[NDArray[np.float32], NDArray[np.int64]],
    settings: VerifySettings,
    *,
    keep: str | None,
    budget_ms: float | None,
    relative_width: float,
    began: float,
    progress: Progress,
) -> tuple[Verification, BoardRecord]:
    """Verify an engine on the board that holds it, and leave it there where that is asked for."""
    import time
    from dataclasses import replace

    import onnx

    from hwnas.deploy.board import BoardRecord, files_to_keep, speed_on_board
    from hwnas.deploy.figures import with_figures
    from hwnas.verify.verification import verify_engine
    from hwnas_export.memory import memory_of_onnx
    from hwnas_profilers.operators import session_of
    from hwnas_profilers.targets import parse_target
    from hwnas_profilers.timing import RoundLog, TimingSettings

    card = replace(card, device=runner.device, packages=runner.packages)
    if keep is not None:
        files = files_to_keep(card, model)
        runner.check_room(keep, sum(map(len, files.values())) + _SPARE_BYTES)
    known, precision = opened.card, parse_target(card.target).runtime.precision
    batch = max(known.resources.batch if known.resources else 1, card.batches[0])
    timing = TimingSettings.for_networks(relative_width=relative_width)
    log, timed_from = RoundLog(), time.monotonic()
    speed = speed_on_board(
        runner,
        timing,
        batch=batch,
        batches=[
            each
            for each in settings.throughput_batches
            if card.batches[0] <= each <= card.batches[2]
        ],
        log=log,
    )
    timed_s = time.monotonic() - timed_from
    own = card.target == known.target  # what the network's budgets were given for
    if budget_ms is None and own:
        budget_ms = known.budget_ms
    verification = verify_engine(
        twin=opened.twin,
        engine=runner,
        images=test[0],
        labels=test[1],
        threat=known.threat,
        precision=precision,
        model=model,
        budget_ms=budget_ms,
        speed=speed,
        budgets=opened.budgets if own else None,
        memory=memory_of_onnx(onnx.load_model_from_string(model), batch=batch),
        settings=settings,
        progress=progress,
    )
    card = with_figures(card, verification)
    kept = ""
    if keep is not None and verification.passed:
        kept = runner.keep(keep, files_to_keep(card, model))
        progress.say(f"deploy: the engine was left in {kept} on the board")
    measuring = session_of(log, workloads=1, seconds=timed_s, facts=runner.facts())
    sent_bytes, received_bytes = runner.traffic_bytes
    progress.say(
        f"deploy: {sent_bytes / _MIB:,.1f} MiB were sent, {received_bytes / _MIB:,.1f} MiB received"
    )
    record = BoardRecord(
        target=runner.name,
        device=runner.device,
        packages=runner.packages,
        engine=card,
        model_bytes=len(model),
        measuring=measuring,
        sent_bytes=sent_bytes,
        received_bytes=received_bytes,
        seconds=round(time.monotonic() - began, 3),
        kept=kept,
    )
    return verification, record
