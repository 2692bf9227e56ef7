"""A whole set of images certified and attacked, batch by batch; killed, it goes on where it was."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from hwnas.core.artifacts import write_atomically
from hwnas.core.decoding import encode_json, read_json
from hwnas.core.errors import CertificateBrokenError
from hwnas.core.progress import SILENT
from hwnas.core.time_limit import stop_if_time_is_up
from hwnas.robustness.bounds.certified import (
    certified_flags,
    certified_radius,
    margin_slack,
    margins_of,
)
from hwnas.robustness.bounds.margins import Method
from hwnas.robustness.evaluate import device_of
from hwnas.robustness.pgd import pgd
from hwnas.robustness.threat import Eps

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor, nn

    from hwnas.core.progress import Progress


@dataclass(frozen=True, slots=True, kw_only=True)
class CertifySettings:
    """How images are certified.

    Attributes:
        eps: Radii in pixel units, ascending, each once; above 0.
        method: How bounds are found.
        radius_steps: Bisections of each image's own radius; 0 leaves it at one of `eps`.
        steps: Gradient steps of PGD, which is run at each radius too.
        restarts: Its random starts.
        seed: Seed of these.
        batch: Images at a time.
    """

    eps: tuple[Eps, ...]
    method: Method
    radius_steps: int
    steps: int
    restarts: int
    seed: int
    batch: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Certified:
    """What was found, by image.

    Attributes:
        certified: Whether an image is right in the whole ball, by radius and image.
        attacked: Whether PGD leaves it right, likewise.
        clean: Whether it is right as it is.
        radii: Its certified radius in pixel units; 0 where it is wrong.
        slack: What margins had to exceed at most, for rounding.
    """

    certified: tuple[tuple[bool, ...], ...]
    attacked: tuple[tuple[bool, ...], ...]
    clean: tuple[bool, ...]
    radii: tuple[float, ...]
    slack: float


def certify_images(
    model: nn.Module,
    images: NDArray[np.float32],
    labels: NDArray[np.int64],
    settings: CertifySettings,
    *,
    state: Path | None = None,
    progress: Progress = SILENT,
) -> Certified:
    """Certify images, and attack them with PGD at the same radii.

    The network is attacked as it is run, in float32; certified is its copy in float64, with slack
    for the difference: see `certified`.

    Args:
        model: A network in eval mode.
        images: (N, channels, height, width), pixels in [0, 1].
        labels: (N,)
        settings: How.
        state: Folder that keeps finished batches; a later run with the same arguments takes them.
        progress: Told of images; of those under way, by the radii that were tried.

    Raises:
        UnboundedOperationError: The network runs what has no sound bound.
        CertificateBrokenError: PGD broke what was certified: a fault of ours.
        UnfinishedError: The time that the run was given is over.
    """
    double = copy.deepcopy(model).double()
    parts = []
    with progress.task(f"certify ({settings.method})", len(images)) as task:
        for number, start in enumerate(range(0, len(images), settings.batch)):
            part = slice(start, start + settings.batch)
            told = 0.0
            file = None if state is None else state / f"batch-{number}.json"
            if file is not None and file.is_file():
                found = read_json(file, Certified)
            else:
                # A generator of its own: what a batch draws does not hang on those before.
                generator = torch.Generator().manual_seed(
                    (settings.seed + 1_000_003 * number) % 2**63
                )
                share = len(images[part]) / (len(settings.eps) + settings.radius_steps)

                def tried(share: float = share) -> None:
                    nonlocal told
                    told += share
                    task.advance(share)

                found = _batch(
                    model, double, images[part], labels[part], settings, generator, tried
                )
                if file is not None:
                    write_atomically(file, encode_json(found))
                    stop_if_time_is_up("certify")
            parts.append(found)
            task.advance(len(found.clean) - told)
    return _joined(parts)


def _batch(
    model: nn.Module,
    double: nn.Module,
    images: NDArray[np.float32],
    labels: NDArray[np.int64],
    settings: CertifySettings,
    generator: torch.Generator,
    tried: Callable[[], None],
) -> Certified:
    device = device_of(model)
    pixels, classes = (torch.from_numpy(each).to(device) for each in (images, labels))
    points = [pixels] + [
        pgd(
            model,
            pixels,
            classes,
            eps=eps,
            steps=settings.steps,
            restarts=settings.restarts,
            generator=generator,
        )
        for eps in settings.eps
    ]
    rights, slack = [], 0.0
    with torch.no_grad():
        for point in points:
            single = model(point)
            slack = max(slack, margin_slack(single, double(point.double()), classes))
            # NaN logits are right for nobody.
            right = (margins_of(single, classes) >= 0).all(1) & (single.argmax(1) == classes)
            rights.append(right)
    clean, attacked = rights[0], torch.stack(rights[1:])
    certified, radii = _proven(double, pixels, classes, clean, settings, slack, tried)
    _check(certified & ~attacked, certified, settings.eps)
    return Certified(
        certified=tuple(map(tuple, certified.tolist())),
        attacked=tuple(map(tuple, attacked.tolist())),
        clean=tuple(clean.tolist()),
        radii=tuple(radii.tolist()),
        slack=slack,
    )


def _proven(
    double: nn.Module,
    pixels: Tensor,
    labels: Tensor,
    clean: Tensor,
    settings: CertifySettings,
    slack: float,
    tried: Callable[[], None],
) -> tuple[Tensor, Tensor]:
    """Return flags, (radii, N), and each image's own radius, (N,). Only right ones are tried."""
    rows = clean.nonzero()[:, 0]
    certified = torch.zeros(len(settings.eps), len(pixels), dtype=torch.bool, device=pixels.device)
    radii = torch.zeros(len(pixels), dtype=torch.float64, device=pixels.device)
    if not len(rows):
        return certified, radii
    method, taken = settings.method, (pixels[rows], labels[rows])
    flags = certified_flags(
        double, *taken, eps=settings.eps, method=method, slack=slack, tried=tried
    )
    ends = torch.tensor([0.0, *settings.eps], dtype=torch.float64, device=pixels.device)
    proven = flags.sum(0)  # (rows,): how many radii, which is where the largest of them stands
    radii[rows] = certified_radius(
        double,
        *taken,
        low=ends[proven],
        high=ends[(proven + 1).clamp(max=len(settings.eps))],
        steps=settings.radius_steps,
        method=method,
        slack=slack,
        tried=tried,
    )
    certified[:, rows] = flags
    return certified, radii


def _check(broken: Tensor, certified: Tensor, eps: Sequence[Eps]) -> None:
    if not broken.any():
        return
    place = int(broken.any(1).nonzero()[0])
    raise CertificateBrokenError(
        f"PGD broke {int(broken[place].sum())} of {int(certified[place].sum())} images that were "
        f"certified at eps {eps[place]:g}: a bound of hwnas is wrong",
        hint="please report it with the network; do not use its certificates",
    )


def _joined(parts: Sequence[Certified]) -> Certified:
    return Certified(
        certified=_side_by_side([part.certified for part in parts]),
        attacked=_side_by_side([part.attacked for part in parts]),
        clean=tuple(each for part in parts for each in part.clean),
        radii=tuple(each for part in parts for each in part.radii),
        slack=max(part.slack for part in parts),
    )


def _side_by_side(tables: Sequence[tuple[tuple[bool, ...], ...]]) -> tuple[tuple[bool, ...], ...]:
    """Join tables of (radii, images) along the images."""
    return tuple(tuple(each for row in rows for each in row) for rows in zip(*tables, strict=True))
