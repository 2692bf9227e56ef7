"""`hwnas verify`: engines themselves against their budget, their twin and their attackers."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from hwnas.core.progress import SILENT, Progress

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from hwnas.verify.verification import Verification


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifyResult:
    """What was found on the engines of a bundle, or on one engine.

    Attributes:
        bundle: The bundle's folder, or the file of the engine.
        passed: Whether every gate of every engine that could run here was passed.
        verification: Figures and gates of the network's own engine, or of the first that was
            verified.
        others: By target, figures and gates of the bundle's other engines.
        not_verified: By target, why an engine could not be verified here: it neither passed nor
            failed.
    """

    bundle: str
    passed: bool
    verification: Verification
    others: dict[str, Verification] = field(default_factory=dict)
    not_verified: dict[str, str] = field(default_factory=dict)

    @property
    def engines(self) -> dict[str, Verification]:
        """All that were verified, by target."""
        return {self.verification.engine: self.verification, **self.others}


def verify(
    bundle: Path | None = None,
    *,
    target: str | None = None,
    reference: Path | None = None,
    engine: Path | None = None,
    data: str | None = None,
    weights: Path | None = None,
    config: Path | None = None,
    eps: str | None = None,
    norm: Literal["linf", "l2"] | None = None,
    steps: int | None = None,
    n: int | None = None,
    budget_ms: float | None = None,
    threads: int = 1,
    out: Path | None = None,
    relative_width: float = 0.005,
    progress: Progress = SILENT,
) -> VerifyResult:
    """Check engines: parity, speed, accuracy and robustness after export.

    Of a bundle every engine that can run here is checked, the network's own first; those that
    cannot are named. Without a bundle, any ONNX file is checked against the model that it was made
    from, e.g. after it was quantized. Test images are run through engine and reference: as they
    are, as adversarial examples crafted on the reference, through a black-box attack on the engine
    itself, and through attacks by gradients that are made for it. The latency is measured on this
    machine. A gate that fails makes the command exit with 3.

    Args:
        bundle: Folder that `hwnas export` or `hwnas run` wrote; without it, `reference` and
            `engine` are given.
        target: Of a bundle, the one engine to check. Of `engine`, the runtime that it is run with;
            by default ONNX Runtime on the CPU.
        reference: What the engine was made from: an ONNX file, FILE.py:callable,
            package.module:callable, a .pt2 file, or a folder of a trained network.
        engine: The ONNX file to check.
        data: Images of `reference`: digits, cifar10:FOLDER, cifar10-torchvision:FOLDER or npz:FILE;
            their test split is used.
        weights: Trained weights (safetensors) of a reference that code builds.
        config: TOML file of `hwnas run`; its [data], [threat] and [verify] are used.
        eps: Bound of the perturbation in pixel units, e.g. 8/255.
        norm: Its norm.
        steps: Gradient steps of the attack on the reference.
        n: Test images, drawn at random; all by default.
        budget_ms: Bound on the latency of `engine`; a bundle has its own.
        threads: Threads within an operator, for `engine`; a bundle says its own.
        out: Where to write the result as JSON; by default nowhere.
        relative_width: The latency is known well enough once the 95 % interval of its median is
            narrower than this share of the median.
        progress: Where to report.

    Returns:
        The figures and gates.

    Raises:
        ConfigError: Neither a bundle nor reference and engine are given, or both are; or the data
            does not fit the engine.
        ArtifactError: The bundle is none, or a file of it was changed.
        TargetError: The target is unknown, or no engine can run here.
        DataError: What an engine gives cannot be compared: probabilities, or other classes.
        GateFailedError: A gate was not passed. The figures are written, and are its `result`.
    """
    from hwnas.core.artifacts import write_atomically
    from hwnas.core.decoding import encode_json
    from hwnas.core.errors import GateFailedError
    from hwnas.stages.verify_bundle import verify_bundle
    from hwnas.stages.verify_model import ModelToVerify
    from hwnas.verify.gates import require_each
    from hwnas_profilers.timing import TimingSettings

    of_model = {
        "reference": reference, "engine": engine, "data": data, "weights": weights,
        "config": config, "eps": eps, "norm": norm, "steps": steps, "n": n, "budget_ms": budget_ms,
    }  # fmt: skip
    _check_subject(bundle, of_model)
    timing = TimingSettings.for_networks(relative_width=relative_width)
    if bundle is not None:
        result = verify_bundle(bundle, target, timing=timing, progress=progress)
    else:
        assert reference is not None
        assert engine is not None
        result = ModelToVerify(
            reference=reference,
            engine=engine,
            weights=weights,
            config=config,
            data=data,
            threat={"eps": eps, "norm": norm, "steps": steps},
            n=n,
            budget_ms=budget_ms,
            target=target or "",
            threads=threads,
        ).verify(timing, progress)
    if out is not None:
        write_atomically(out, encode_json(result, indent=2))
    try:
        require_each({name: each.gates for name, each in result.engines.items()})
    except GateFailedError as error:
        error.result = result
        raise
    return result


def _check_subject(bundle: Path | None, of_model: Mapping[str, object]) -> None:
    from hwnas.core.errors import ConfigError

    given = [name for name, value in of_model.items() if value is not None]
    if bundle is None:
        missing = [name for name in ("reference", "engine", "data") if name not in given]
        if "config" in given or _knows_its_data(of_model["reference"]):
            missing = [name for name in missing if name != "data"]
        if missing:
            raise ConfigError(
                f"`{missing[0]}` is missing: there is no bundle to check",
                hint="name a bundle, or --reference MODEL --engine FILE.onnx --data SOURCE",
            )
    elif given:
        raise ConfigError(
            f"`{given[0]}` is for an engine without a bundle: {bundle} holds its own",
            hint=f"leave --{given[0].replace('_', '-')} out, or the bundle",
        )


def _knows_its_data(reference: object) -> bool:
    """Say whether a reference is a folder of hwnas, which says what images it is for."""
    from pathlib import Path

    return isinstance(reference, Path) and reference.is_dir()
