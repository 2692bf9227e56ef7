"""`hwnas certify`: what is proven of a network's robustness, beside what attacks refute."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from hwnas.core.progress import SILENT, Progress

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray
    from torch import nn

    from hwnas.data.images import ImageData
    from hwnas.data.sources import DataConfig
    from hwnas.robustness.bounds.records import CertifyLine, CertifyRecord, Radii
    from hwnas.robustness.bounds.run import Certified, CertifySettings
    from hwnas.robustness.threat import Eps
    from hwnas.stages.attack_subjects import Subject

RECORD_FILE = "certify.json"
PAGE_FILE = "certify.html"
PICTURE_FILE = "certify.svg"
_PROBED = 32  # images that a network is tried on before hours are spent on it


@dataclass(frozen=True, slots=True, kw_only=True)
class CertifyResult:
    """What was proven of a model.

    Attributes:
        model: What it was named by.
        kind: What that is.
        method: How bounds were found.
        n: Test images.
        seed: Seed of all draws.
        clean_accuracy: Without a perturbation.
        lines: Per radius, the certified share, and what PGD leaves, with 95 % Wilson intervals.
        radii_levels: Quantiles of the certified radii, in gray levels of 1/255.
        slack: What a margin had to exceed, for the rounding of float32.
        page: The report.
        record: All of it as JSON.
    """

    model: str
    kind: str
    method: str
    n: int
    seed: int
    clean_accuracy: float
    lines: tuple[CertifyLine, ...]
    radii_levels: Radii
    slack: float
    page: str
    record: str


def certify(
    model: Path,
    out: Path,
    *,
    config: Path | None = None,
    data: str | None = None,
    weights: Path | None = None,
    eps: tuple[str, ...] = ("1/255", "2/255", "4/255", "8/255"),
    method: Literal["ibp", "crown-ibp", "crown"] = "crown",
    n: int = 200,
    seed: int = 0,
    batch: int = 8,
    radius_steps: int = 4,
    steps: int = 20,
    restarts: int = 1,
    progress: Progress = SILENT,
) -> CertifyResult:
    """Prove for how many test images, and how far around each, a network cannot be fooled.

    A certified image keeps its class under every change of its pixels by up to eps: no attack will
    ever break it. Beside it stands what PGD leaves at the same eps, which no proof can exceed; that
    PGD breaks no certified image is checked. Interrupted, it goes on after the last finished batch.

    Args:
        model: Folder of a trained network, a teacher or a bundle (its PyTorch twin); or whatever
            else `hwnas attack` takes.
        out: Folder of the result.
        config: TOML file of `hwnas run`; its [data] is used. Without it, that which the model was
            made with.
        data: Images: digits, cifar10:FOLDER, cifar10-torchvision:FOLDER or npz:FILE.
        weights: Trained weights (safetensors) of a module.
        eps: Radii in pixel units, l_inf, e.g. 1/255,2/255.
        method: From the fastest to the tightest: ibp, crown-ibp, crown. crown takes a backward pass
            per neuron: for small networks.
        n: Test images, drawn at random; all where there are fewer.
        seed: Seed of the draws and of the attack.
        batch: Images at a time.
        radius_steps: Bisections of each image's radius between two of `eps`.
        steps: Gradient steps of PGD.
        restarts: Its random starts.
        progress: Where to report.

    Returns:
        What is proven, and what is refuted.

    Raises:
        ConfigError: A setting is out of range, or the data does not fit the model.
        DataError: The network gives no logits, or not the same ones twice.
        ArtifactError: A folder is unfinished or was changed.
        UnboundedOperationError: The network runs what has no sound bound: it is named.
        CertificateBrokenError: PGD broke what was certified: a fault of hwnas.
    """
    import shutil

    import msgspec

    from hwnas.core.artifacts import ManifestDraft, new_artifact, sha256_of
    from hwnas.core.decoding import encode_json, read_json
    from hwnas.data.sources import load_data
    from hwnas.report.certify_page import page_from_record
    from hwnas.report.certify_picture import certify_picture
    from hwnas.report.drawing import drawing_style, svg_file_from_picture
    from hwnas.robustness.bounds.records import CertifyRecord
    from hwnas.robustness.bounds.run import CertifySettings, certify_images
    from hwnas.stages.artifacts import checkpoint_beside, data_inputs, is_current
    from hwnas.stages.calls import call_text

    _check_counts(n=n, batch=batch, steps=steps, restarts=restarts)
    _check_counts(least=0, seed=seed, radius_steps=radius_steps)
    written, radii = _radii(eps)
    subject, source = _subject(model, weights, config, data)
    options = {
        "eps": written, "method": method, "n": n, "seed": seed, "batch": batch,
        "radius_steps": radius_steps, "steps": steps, "restarts": restarts,
    }  # fmt: skip
    settings = {"data": msgspec.to_builtins(source), **options}
    inputs = data_inputs(source) | subject.inputs
    if is_current(out, kind="certify", settings=settings, inputs=inputs):
        progress.say(f"certify: {out} is finished already")
        return _result(read_json(out / RECORD_FILE, CertifyRecord), out)

    images = load_data(source)
    rows, pixels, labels = _chosen(images, n, seed)
    if len(rows) < n:
        progress.say(f"certify: there are only {len(rows)} test images")
    network = _network(subject, images, pixels)
    state = checkpoint_beside(out)
    key = sha256_of(encode_json({"settings": settings, "inputs": inputs}))[:16]
    how = CertifySettings(
        eps=radii,
        method=method,
        radius_steps=radius_steps,
        steps=steps,
        restarts=restarts,
        seed=seed,
        batch=batch,
    )
    found = certify_images(network, pixels, labels, how, state=state / key, progress=progress)
    record = _record(subject, source, written, rows, how, found)
    draft = ManifestDraft(
        kind="certify",
        call=call_text(
            "certify", model=model, out=out, config=config, data=data, weights=weights, **options
        ),
        settings=settings,
        inputs=inputs,
    )
    with drawing_style():
        picture = certify_picture(record)
    with new_artifact(out, draft) as folder:
        (folder / RECORD_FILE).write_bytes(encode_json(record, indent=1))
        (folder / PAGE_FILE).write_text(
            page_from_record(record, picture, draft.call), encoding="utf-8"
        )
        (folder / PICTURE_FILE).write_bytes(svg_file_from_picture(picture))
    shutil.rmtree(state, ignore_errors=True)
    return _result(record, out)


def _check_counts(*, least: int = 1, **counts: int) -> None:
    from hwnas.core.errors import ConfigError

    for name, value in counts.items():
        if value < least:
            raise ConfigError(f"`{name}` is at least {least}, not {value}")


def _radii(eps: tuple[str, ...]) -> tuple[tuple[str, ...], tuple[Eps, ...]]:
    """Return radii in ascending order, each once: as they were written, and as numbers."""
    from hwnas.core.errors import ConfigError
    from hwnas.robustness.threat import parse_eps

    written = {parse_eps(text): text for text in eps}
    if not written or not min(written) > 0:
        raise ConfigError("`eps` holds radii above 0", hint="e.g. 1/255,2/255")
    ascending = sorted(written)
    return tuple(written[each] for each in ascending), tuple(ascending)


def _subject(
    model: Path, weights: Path | None, config: Path | None, data: str | None
) -> tuple[Subject, DataConfig]:
    """Open the model, and settle on its images: given ones, the file's, the model's, defaults."""
    from dataclasses import replace

    from hwnas.data.sources import load_data
    from hwnas.stages.attack_subjects import open_subject
    from hwnas.stages.config import load_config

    source = load_config(config, data=data).data
    # A zoo's network that is not pretrained is built for the classes of the data.
    classes = len(load_data(source).class_names) if weights is not None else 1
    subject = open_subject(model, weights, classes)
    if config is None and subject.data is not None:
        source = replace(subject.data, source=data) if data else subject.data
    return subject, source


def _chosen(
    images: ImageData, n: int, seed: int
) -> tuple[list[int], NDArray[np.float32], NDArray[np.int64]]:
    """Draw test images: their places, pixels and labels."""
    import torch

    from hwnas.data.images import Split

    generator = torch.Generator().manual_seed(seed)
    rows = torch.randperm(len(images.test), generator=generator)[:n]
    chosen = Split(images=images.test.images[rows], labels=images.test.labels[rows])
    return rows.tolist(), chosen.pixels().numpy(), chosen.labels.numpy()


def _network(subject: Subject, images: ImageData, pixels: NDArray[np.float32]) -> nn.Module:
    """Return the network, in eval mode and in float32, once it is known to take the images."""
    from hwnas.core.errors import ConfigError, DataError
    from hwnas.robustness.model_checks import check_model

    network = subject.module
    if network is None:
        raise ConfigError(
            f"{subject.name} has no PyTorch network to find bounds with: {subject.reason}",
            hint="certify the network that it was made from",
        )
    network.eval().requires_grad_(requires_grad=False)
    try:
        facts = check_model(network, pixels[:_PROBED], classes=len(images.class_names))
    except DataError:
        raise
    except (RuntimeError, ValueError, TypeError) as error:  # of code that is not ours
        raise ConfigError(
            f"{subject.name} cannot take images of {'x'.join(map(str, images.image_shape))}: "
            f"{str(error).strip().partition(chr(10))[0]}",
            hint="set `image_size` in [data] of --config, or name the images it was trained on",
        ) from error
    if not facts.is_deterministic:
        raise DataError(
            f"{subject.name} gives different logits for equal images: it is random or keeps a "
            "state, and bounds would be those of one draw alone",
            hint="take the randomness out, or look for a bound of its mean elsewhere",
        )
    return network


def _record(
    subject: Subject,
    source: DataConfig,
    written: tuple[str, ...],
    rows: list[int],
    settings: CertifySettings,
    found: Certified,
) -> CertifyRecord:
    from hwnas.robustness.bounds.records import CertifyLine, CertifyRecord, Radii

    table = zip(written, found.certified, found.attacked, strict=True)
    return CertifyRecord(
        model=subject.name,
        kind=subject.kind,
        method=settings.method,
        data=source.source,
        n=len(rows),
        seed=settings.seed,
        steps=settings.steps,
        restarts=settings.restarts,
        clean=sum(found.clean) / len(rows),
        lines=tuple(
            CertifyLine.from_counts(eps, sum(certified), sum(attacked), len(rows))
            for eps, certified, attacked in table
        ),
        radii=Radii.from_pixels(found.radii, settings.eps[-1]),
        slack=found.slack,
        samples=tuple(zip(rows, found.radii, strict=True)),
    )


def _result(record: CertifyRecord, out: Path) -> CertifyResult:
    return CertifyResult(
        model=record.model,
        kind=record.kind,
        method=record.method,
        n=record.n,
        seed=record.seed,
        clean_accuracy=record.clean,
        lines=record.lines,
        radii_levels=record.radii,
        slack=record.slack,
        page=str(out / PAGE_FILE),
        record=str(out / RECORD_FILE),
    )
