"""The engines of a bundle in short, and what is written for whoever runs them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from hwnas.core.decoding import read_json
from hwnas.deploy.engine_targets import fp32_target
from hwnas.deploy.engines import engine_cards
from hwnas.deploy.records import ENGINES_FOLDER
from hwnas.stages.bundle import PARITY_FILE, SBOM_FILE, TRITON_FOLDER
from hwnas.verify.parity import Parity

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from hwnas.deploy.records import EngineCard
    from hwnas.stages.bundle import ModelCard


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSummary:
    """One engine of a bundle, in short.

    Attributes:
        target: What it runs on.
        precision: Precision of its ONNX model.
        size_bytes: Size of what is loaded: its plan, or else its ONNX model.
        session: Settings of the session that were found to be faster than the usual ones.
        latency_us: Median latency as it was timed beside FP32; None of FP32 itself, and where it
            cannot run here.
        fp32_us: That of the engine in FP32 in the same run.
        relative_l2: Norm of its logits' difference from PyTorch's over the norm of PyTorch's; None
            where they were not compared.
        agreement: Share of equal predictions likewise.
        built_for: Compute capabilities that it was built for.
    """

    target: str
    precision: str
    size_bytes: int
    session: str
    latency_us: float | None
    fp32_us: float | None
    relative_l2: float | None
    agreement: float | None
    built_for: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class SlowerEngine:
    """An engine that was left out, in short.

    Attributes:
        target: What it was for.
        kept: Target of the engine in FP32 that is there instead.
        latency_us: Its median latency.
        fp32_us: That of the engine in FP32 in the same run.
    """

    target: str
    kept: str
    latency_us: float
    fp32_us: float


def summaries_of(
    bundle: Path, card: ModelCard
) -> tuple[tuple[EngineSummary, ...], tuple[SlowerEngine, ...]]:
    """Return the engines of a bundle in short, and those that were left out."""
    engines = tuple(_summary(bundle, each) for each in engine_cards(bundle))
    slower = tuple(
        SlowerEngine(
            target=each.target,
            kept=each.kept,
            latency_us=each.choice.engine.median_us,
            fp32_us=each.choice.fp32.median_us,
        )
        for each in card.left_out
    )
    return engines, slower


def _summary(bundle: Path, card: EngineCard) -> EngineSummary:
    choice, parity = card.choice, exported_parity(bundle, card.target)
    return EngineSummary(
        target=card.target,
        precision=card.precision,
        size_bytes=(bundle / (card.plan or card.model)).stat().st_size,
        session=", ".join(f"{name} {value}" for name, value in sorted(card.session.items())),
        latency_us=None if choice is None else choice.engine.median_us,
        fp32_us=None if choice is None else choice.fp32.median_us,
        relative_l2=None if parity is None else parity.relative_l2,
        agreement=None if parity is None else parity.agreement,
        built_for=card.compute_capabilities,
    )


def exported_parity(bundle: Path, target: str) -> Parity | None:
    """Return how far an engine's logits were from PyTorch's when it was exported; None if not."""
    file = bundle / ENGINES_FOLDER / target / PARITY_FILE
    return read_json(file, Parity) if file.is_file() else None


def main_target(searched_for: str, cards: Sequence[EngineCard]) -> str:
    """Return the target of a bundle's main engine: see `ModelCard.target`."""
    targets = [card.target for card in cards]
    for each in (searched_for, fp32_target(searched_for)):
        if each in targets:
            return each
    return targets[0]


def finish_bundle(folder: Path, main: EngineCard, *, triton: bool) -> None:
    """Write what is made from a bundle's files: the example, Triton's repository, the SBOM.

    Args:
        folder: The bundle's folder, still to be hashed.
        main: Its main engine.
        triton: Write the repository.

    Raises:
        ExportError: Triton serves none of the engines.
    """
    from hwnas.deploy.example import EXAMPLE_FILE, example_py
    from hwnas.deploy.sbom import sbom_json
    from hwnas.deploy.triton import write_triton

    (folder / EXAMPLE_FILE).write_text(example_py(main), encoding="utf-8")
    if triton:
        write_triton(folder / TRITON_FOLDER, engine_cards(folder), bundle=folder)
    (folder / SBOM_FILE).write_bytes(sbom_json(folder))
