"""FAB: walks along the decision boundary toward the nearest misclassified point.

A step linearizes the model, projects both the point and the image onto the plane where two classes
tie, and goes to a mix of the two projections, slightly beyond. The smallest change found is judged
at eps.

What we depart from the reference in:

- A sample leaves the batch once a misclassified point within eps is known: further steps could
  only shorten a change that is short enough. So the points that are returned are adversarial, but
  not the nearest ones.
- The projection onto a plane within the box is found by Newton steps on a piecewise linear
  function of one variable, in place of sorting all pixels. It ends at the same point.
- No gradient is computed for the weights.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from hwnas.robustness.attacks.ball import sizes_of
from hwnas.robustness.attacks.losses import fooled, gradient_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from hwnas.robustness.attacks.losses import Forward
    from hwnas.robustness.threat import Norm

# Croce & Hein, "Minimally distorted ...", 2020, section 3, as set in AutoAttack.
_LARGEST_MIX = 0.1  # of the image's own projection
_OVERSHOOT = 1.05
_BACKWARD = 0.9  # how far from the image a misclassified point is pulled back to
_SHORTEST = 1e-8
# Each Newton step saturates one more pixel at least; a handful suffices, so this is never reached.
_NEWTON_STEPS = 200


def fab_targeted(
    model: Forward,
    images: Tensor,
    labels: Tensor,
    *,
    norm: Norm,
    eps: float,
    classes: int = 9,
    steps: int = 100,
    tick: Callable[[], None] = lambda: None,
) -> Tensor:
    """Attack a batch of samples, toward each of the likeliest wrong classes in turn.

    Args:
        model: Maps images to logits.
        images: (N, channels, height, width), pixels in [0, 1].
        labels: (N,), int64.
        norm: Norm of the change.
        eps: The largest change that counts.
        classes: Target classes at most, the likeliest first.
        steps: Steps toward each class.
        tick: Called after each step.

    Returns:
        (N, channels, height, width): of a broken sample a misclassified point within eps; of
        another the image itself.

    References:
        Croce & Hein, "Minimally distorted Adversarial Examples with a Fast Adaptive Boundary
        Attack", 2020.
    """
    result = images.detach().clone()
    with torch.no_grad():
        logits = model(images)
    order = logits.sort(dim=1).indices
    remaining = (~fooled(logits, labels)).nonzero()[:, 0]
    for rank in range(2, min(classes + 1, order.shape[1]) + 1):
        if not len(remaining):
            break
        points, broken = _walk(
            model,
            images[remaining],
            labels[remaining],
            order[remaining, -rank],
            norm=norm,
            eps=eps,
            steps=steps,
            tick=tick,
        )
        result[remaining[broken]] = points[broken]
        remaining = remaining[~broken]
    return result


def _walk(
    model: Forward,
    images: Tensor,
    labels: Tensor,
    targets: Tensor,
    *,
    norm: Norm,
    eps: float,
    steps: int,
    tick: Callable[[], None],
) -> tuple[Tensor, Tensor]:
    """Walk toward one target class; return points and where they are broken within eps."""
    result = images.clone()
    found = torch.zeros(len(images), dtype=torch.bool, device=images.device)
    rows = torch.arange(len(images), device=images.device)
    point = images
    for _ in range(steps):
        gap, normal = _linearize(model, point, labels, targets)
        change = onto_plane(point, normal, gap, norm)
        # The same plane seen from the image: normal @ (image - point) further away.
        image_gap = gap + (normal * (images - point)).sum(dim=(1, 2, 3))
        image_change = onto_plane(images, normal, image_gap, norm)
        near = _column(sizes_of(change, norm)).clamp(min=_SHORTEST)
        far = _column(sizes_of(image_change, norm)).clamp(min=_SHORTEST)
        mix = (near / (near + far)).clamp(0, _LARGEST_MIX)
        own = change.mul_(_OVERSHOOT).add_(point).mul_(1 - mix)
        point = image_change.mul_(_OVERSHOOT).add_(images).mul_(mix).add_(own).clamp_(0.0, 1.0)
        with torch.no_grad():
            adversarial = fooled(model(point), labels)
        tick()
        if not adversarial.any():
            continue
        broken = adversarial & (sizes_of(point - images, norm) <= eps)
        if broken.any():
            result[rows[broken]] = point[broken]
            found[rows[broken]] = True
            kept = (~broken).nonzero()[:, 0]
            if not len(kept):
                break
            rows, images, point = rows[kept], images[kept], point[kept]
            labels, targets, adversarial = labels[kept], targets[kept], adversarial[kept]
        pulled = images + (point - images) * _BACKWARD
        point = torch.where(_column(adversarial), pulled, point)
    return result, found


def onto_plane(points: Tensor, normal: Tensor, gap: Tensor, norm: Norm) -> Tensor:
    """Return the smallest change that brings each point onto a plane, within the box [0, 1].

    The change moves pixel i by -sign * min(t * rate_i, room_i): toward the plane, at the rate that
    the norm wants, until the pixel meets the box. What is gained, sum_i |normal_i| min(t rate_i,
    room_i), is a concave and piecewise linear function of t, and Newton's method from t = 0 never
    overshoots on it and ends at the exact root.

    Args:
        points: (N, channels, height, width), pixels in [0, 1].
        normal: The planes' normals, of the same shape.
        gap: (N,), normal @ point less the plane's offset.
        norm: The norm to be small in.

    Returns:
        (N, channels, height, width). Where the box does not reach the plane, as near as it comes.
    """
    direction = -normal.sign() * _column(gap.sign())
    slope = normal.abs()
    room = torch.where(direction > 0, 1 - points, points)
    wanted, gain = gap.abs(), slope * room
    pull = slope if norm == "linf" else slope.square()
    # A pixel of slope 0 gains nothing, full or not; in l_2 it never is: x / 0 compares as larger.
    meets = room if norm == "linf" else room / slope
    time = torch.zeros_like(wanted)
    for _ in range(_NEWTON_STEPS):
        full = meets <= _column(time)
        gained = torch.where(full, gain, 0.0).sum(dim=(1, 2, 3))
        speed = torch.where(full, 0.0, pull).sum(dim=(1, 2, 3))
        # Where all pixels are full the plane is out of reach, and every time is as good.
        later = torch.where(speed > 0, (wanted - gained) / speed, time)
        if not (later > time).any():
            break
        time = torch.maximum(time, later)
    reach = _column(time) if norm == "linf" else slope * _column(time)
    return torch.minimum(reach, room).mul_(direction)


def _linearize(
    model: Forward, points: Tensor, labels: Tensor, targets: Tensor
) -> tuple[Tensor, Tensor]:
    """Return how far the target's logit is above the label's, (N,), and its gradient."""
    with torch.enable_grad():
        variable = points.detach().requires_grad_()
        logits = model(variable)
        gap = (logits.gather(1, targets[:, None]) - logits.gather(1, labels[:, None]))[:, 0]
    return gap.detach(), gradient_of(gap, variable)


def _column(values: Tensor) -> Tensor:
    """(N,) -> (N, 1, 1, 1)."""
    return values[:, None, None, None]
