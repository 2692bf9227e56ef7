"""`hwnas attack`: what attacks leave of a model's accuracy, and whether they can be trusted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from hwnas.core.progress import SILENT, Progress

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from hwnas.robustness.attack_records import AttackLine, AttackRecord, CheckLine
    from hwnas.stages.attack_subjects import Subject
    from hwnas.stages.config import RunConfig
    from hwnas_export.torch_from_onnx import TwinParity

RECORD_FILE = "attack.json"
PAGE_FILE = "attack.html"
PICTURE_FILE = "attack.svg"
IMAGES_FILE = "adversarial.npz"

_WITH_GRADIENTS = ("fgsm", "pgd", "autoattack")
_BY_SCORES = ("square",)


@dataclass(frozen=True, slots=True, kw_only=True)
class AttackResult:
    """What was found on a model.

    Attributes:
        model: What it was named by.
        kind: What that is.
        access: What the attacks could see of it.
        reason: Why there is no white box; None where there is one.
        parity: The twin against the engine; None where there are not both.
        data: The images' source.
        classes: Its classes.
        lines: The table: each attack with its accuracy, interval, n, norm, eps, protocol and seed.
        checks: Checks of the model and of the evaluation; the record has them all.
        failed: Those that were not passed, and which figures mean nothing then.
        page: The report.
        record: All that was found, as JSON.
    """

    model: str
    kind: str
    access: str
    reason: str | None
    parity: TwinParity | None
    data: str
    classes: int
    lines: tuple[AttackLine, ...]
    checks: int
    failed: tuple[CheckLine, ...]
    page: str
    record: str


def attack(
    model: Path,
    out: Path,
    *,
    config: Path | None = None,
    data: str | None = None,
    weights: Path | None = None,
    attacks: tuple[str, ...] | None = None,
    eps: tuple[str, ...] | None = None,
    norm: Literal["linf", "l2"] | None = None,
    steps: int | None = None,
    restarts: int | None = None,
    protocol: Literal["pixel", "normalized"] | None = None,
    n: int = 1000,
    seed: int = 0,
    batch: int = 128,
    queries: int = 5000,
    check_samples: int = 128,
    save_images: bool = False,
    progress: Progress = SILENT,
) -> AttackResult:
    """Attack a model, and check that the attacks can be trusted.

    Attacked are seeded random test images. What has gradients is attacked by them; what is deployed
    is attacked itself: by the examples of its twin, and by its scores alone. A failed check says
    which figures mean nothing, and makes the command exit with 3, as a failed gate of `hwnas
    verify` does. Interrupted, it goes on after the last finished batch.

    Args:
        model: Folder of a trained network, a teacher or a bundle; an ONNX file; or a module:
            FILE.py:callable, package.module:callable, torchvision:NAME, timm:NAME, robustbench:NAME
            or a .pt2 file.
        out: Folder of the result.
        config: TOML file of `hwnas run`; its [data] and [threat] are used. Without it, those that
            the model was made with.
        data: Images: digits, cifar10:FOLDER, cifar10-torchvision:FOLDER or npz:FILE.
        weights: Trained weights (safetensors) of a module.
        attacks: Names of attacks: fgsm, pgd, mi-fgsm, cw, apgd-ce, apgd-dlr, apgd-t, fab-t, square,
            autoattack. By default fgsm, pgd and autoattack where there are gradients, and square on
            an engine.
        eps: Bounds of the perturbation in pixel units, e.g. 4/255,8/255: one table and one curve.
        norm: Its norm.
        steps: Gradient steps of PGD, MI-FGSM and CW.
        restarts: Their random starts.
        protocol: pixel; or normalized, which compares with tables of papers alone.
        n: Test images, drawn at random; all where there are fewer.
        seed: Seed of the draws and of the attacks.
        batch: Images at a time.
        queries: The most queries of Square per image.
        check_samples: Images that the attack is varied on to check it.
        save_images: Keep the adversarial images, as adversarial.npz.
        progress: Where to report.

    Returns:
        The table and the checks.

    Raises:
        ConfigError: An attack or a setting is unknown, needs gradients that there are none of, or
            the data does not fit the model.
        ArtifactError: A folder is unfinished or was changed.
        DataError: What the model gives is no logits: probabilities, another shape, or only NaN.
        GateFailedError: A check was not passed. The table is written, and is its `result`.
    """
    import shutil

    import msgspec

    from hwnas.core.artifacts import ManifestDraft, new_artifact, sha256_of
    from hwnas.core.decoding import encode_json, read_json
    from hwnas.core.errors import ConfigError
    from hwnas.data.sources import load_data
    from hwnas.report.attack_page import page_from_record
    from hwnas.report.attack_pictures import attack_picture
    from hwnas.report.drawing import drawing_style, svg_file_from_picture
    from hwnas.robustness.attack_records import AttackRecord
    from hwnas.stages.artifacts import checkpoint_beside, data_inputs, is_current
    from hwnas.stages.attack_run import AttackRun
    from hwnas.stages.calls import call_text

    for name, value in {"n": n, "batch": batch, "queries": queries, "check_samples": check_samples,
                        }.items():  # fmt: skip
        if value < 1:
            raise ConfigError(f"`{name}` is at least 1, not {value}")
    if seed < 0:
        raise ConfigError(f"`seed` is at least 0, not {seed}")
    given = {"norm": norm, "steps": steps, "restarts": restarts, "protocol": protocol}
    settings = _settings(model, weights, config, data, given, eps)
    subject = settings.subject
    own = _WITH_GRADIENTS if subject.module is not None else ()
    names = attacks or (*own, *(_BY_SCORES if subject.engine is not None else ()))
    options: dict[str, Any] = {
        "attacks": list(names), "n": n, "seed": seed, "batch": batch, "queries": queries,
        "check_samples": check_samples, "save_images": save_images,
    }  # fmt: skip
    resolved = {
        "data": msgspec.to_builtins(settings.config.data),
        "threats": [msgspec.to_builtins(threat) for threat in settings.threats],
        **options,
    }
    inputs = data_inputs(settings.config.data) | subject.inputs
    if is_current(out, kind="attack", settings=resolved, inputs=inputs):
        progress.say(f"attack: {out} is finished already")
        return _judged(read_json(out / RECORD_FILE, AttackRecord), out)

    images = load_data(settings.config.data)
    state = checkpoint_beside(out)
    key = sha256_of(encode_json({"settings": resolved, "inputs": inputs}))[:16]
    run = AttackRun(
        subject=subject,
        data=images,
        source=settings.config.data.source,
        threats=settings.threats,
        attacks=tuple(names),
        n=n,
        seed=seed,
        batch=batch,
        queries=queries,
        check_samples=check_samples,
        state=state / key,
        progress=progress,
    )
    record = run.record()
    draft = ManifestDraft(
        kind="attack",
        call=call_text(
            "attack", model=model, out=out, config=config, data=data, weights=weights, eps=eps,
            **given, **options,
        ),
        settings=resolved,
        inputs=inputs,
    )  # fmt: skip
    with drawing_style():
        picture = attack_picture(record)
    with new_artifact(out, draft) as folder:
        (folder / RECORD_FILE).write_bytes(encode_json(record, indent=1))
        (folder / PAGE_FILE).write_text(
            page_from_record(record, picture, draft.call), encoding="utf-8"
        )
        (folder / PICTURE_FILE).write_bytes(svg_file_from_picture(picture))
        if save_images:
            run.save_images(folder / IMAGES_FILE)
    shutil.rmtree(state, ignore_errors=True)
    return _judged(record, out)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Settings:
    """The model, and what it is attacked with."""

    subject: Subject
    config: RunConfig
    threats: tuple[Any, ...]


def _settings(
    model: Path,
    weights: Path | None,
    config: Path | None,
    data: str | None,
    given: dict[str, Any],
    eps: Sequence[str] | None,
) -> _Settings:
    """Open the model and put settings in order: given ones, the file's, the model's, defaults."""
    from dataclasses import replace

    from hwnas.data.sources import load_data
    from hwnas.stages.attack_subjects import open_subject
    from hwnas.stages.config import load_config

    asked = load_config(config, data=data)
    # A zoo's network that is not pretrained is built for the classes of the data.
    classes = len(load_data(asked.data).class_names) if weights is not None else 1
    subject = open_subject(model, weights, classes)
    if config is None and subject.data is not None:
        own = replace(subject.data, source=data) if data else subject.data
        asked = replace(asked, data=own)
    threat = asked.threat if config is not None or subject.threat is None else subject.threat
    changes = {name: value for name, value in given.items() if value is not None}
    if len(changes.keys() & {"norm", "steps"}) and threat.step_size is not None:
        changes["step_size"] = None  # it belongs to the norm and the steps that it was set for
    bounds = tuple(eps) if eps else (threat.eps,)
    return _Settings(
        subject=subject,
        config=asked,
        threats=tuple(replace(threat, **changes, eps=bound) for bound in bounds),
    )


def _judged(record: AttackRecord, out: Path) -> AttackResult:
    """Return the result. Raises GateFailedError, with the result, where a check failed."""
    from dataclasses import replace

    from hwnas.core.errors import GateFailedError

    result = AttackResult(
        model=record.model,
        kind=record.kind,
        access=record.access,
        reason=record.reason or None,
        parity=record.parity,
        data=record.data,
        classes=record.classes,
        # What each attack ran with is told by the page.
        lines=tuple(replace(line, settings="") for line in record.lines),
        checks=len(record.checks),
        failed=record.failed,
        page=str(out / PAGE_FILE),
        record=str(out / RECORD_FILE),
    )
    if record.failed:
        lines = "".join(
            f"\n  {check.name}{f' at eps {check.eps}' if check.eps else ''}, on the {check.on}: "
            f"{'not computable' if check.figure is None else f'{check.figure:.4g}'}, allowed "
            f"{check.allowed}\n    {check.meaning}"
            for check in record.failed
        )
        raise GateFailedError(
            f"{len(record.failed)} of {len(record.checks)} checks failed, so that not every figure "
            f"above can be trusted:{lines}",
            hint="what was found is kept, with these checks beside it",
            result=result,
        )
    return result
