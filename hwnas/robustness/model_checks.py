"""Checks of a model before it is attacked: does what it gives let an attack mean anything?

References:
    Croce and Hein, "Reliable evaluation of adversarial robustness with an ensemble of diverse
    parameter-free attacks", 2020: the cases that AutoAttack's code warns of.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from hwnas.core.errors import DataError
from hwnas.robustness.criteria import SLACK_POINTS, Check, at_most
from hwnas.robustness.evaluate import device_of, evaluating
from hwnas.robustness.input_gradients import (
    computes_gradients,
    cross_entropy_of_prediction,
    margin_of_prediction,
    zero_gradient_share,
)
from hwnas.robustness.threat import check_images

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

    from hwnas.robustness.square import Predict

# Shares of the largest logit. Kernels of equal inputs give equal bits on a CPU, and on a GPU differ
# by some 1e-6; those for another batch sum in another order.
_SAME = 1e-5
_SAME_IN_BATCH = 1e-3
# A softmax in single precision sums to 1 within 1e-6; one that was quantized to 8 bits, within a
# step of 1/255 or so for each of its larger classes.
_SUMS_TO_1 = 0.02
_TIES = 0.01
_ALONE = 4
_SHOWN = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFacts:
    """What was found on a model by running it on n images, in eval mode.

    Attributes:
        n: Images.
        classes: Its classes.
        nonfinite: Places of the images for which a logit is NaN or infinite.
        training_parts: Names of its parts that were in train mode; it was run in eval mode.
        repeat_difference: Largest difference of a logit between two equal calls, over the largest
            logit.
        batch_difference: The same between images alone and in a batch.
        unit_range: Whether all outputs lie in [0, 1], though they do not sum to 1: sigmoids.
        tie_rate: Share of images whose two top logits are equal.
        distinct_logits: Different values among all logits.
        largest_logit: Largest logit by size.
        zero_gradients: Share of images for which the cross-entropy has no gradient at all; None for
            an array function.
        zero_margin_gradients: The same of the margin between the two top logits.
        optimizes: Whether it computes gradients when it is called; None for an array function.
    """

    n: int
    classes: int
    nonfinite: tuple[int, ...]
    training_parts: tuple[str, ...]
    repeat_difference: float
    batch_difference: float
    unit_range: bool
    tie_rate: float
    distinct_logits: int
    largest_logit: float
    zero_gradients: float | None
    zero_margin_gradients: float | None
    optimizes: bool | None

    @property
    def is_deterministic(self) -> bool:
        """Whether equal images gave equal logits."""
        return self.repeat_difference <= _SAME

    def checks(self) -> tuple[Check, ...]:
        """Judge them: a failed check says which figures mean nothing."""
        return tuple(_checks(self))


def check_model(
    model: nn.Module | Predict, images: NDArray[np.float32], *, classes: int, batch: int = 128
) -> ModelFacts:
    """Run a model on images and look for what makes attacks on it mean nothing.

    A module is run in eval mode whatever mode it is in, and gets its own back: dropout and the
    statistics of a batch are no part of what is attacked. That it was in train mode is a fact, not
    an error.

    Args:
        model: A module, or an array function that maps images to logits.
        images: float32, (N, channels, height, width), pixels in [0, 1].
        classes: Classes that it should tell apart.
        batch: Images per call.

    Raises:
        DataError: Images outside [0, 1]; outputs that are no logits: of another shape, finite for
            no image, or probabilities, on whose losses attacks are too weak.
    """
    if not len(images):
        raise DataError("there are no images to check the model on")
    check_images(torch.from_numpy(images))
    if not isinstance(model, nn.Module):
        return _facts(model, images, classes, batch, training_parts=(), module=None)
    training = tuple(name for name, part in model.named_modules() if part.training)
    with evaluating(model):
        return _facts(
            lambda part: _ask(model, part), images, classes, batch,
            training_parts=training, module=model,
        )  # fmt: skip


def refuse_probabilities(logits: NDArray[np.float32]) -> None:
    """Refuse a softmax at the end: the losses of attacks flatten on it, and overstate robustness.

    Args:
        logits: (N, classes)

    Raises:
        DataError: Every row lies in [0, 1] and sums to 1.
    """
    finite = logits[np.isfinite(logits).all(axis=1)]
    if not _in_unit_range(finite):
        return
    if np.abs(finite.sum(axis=1) - 1).max() < _SUMS_TO_1:
        raise DataError(
            "the network gives probabilities, not logits: attacks on it would be too weak, and its "
            "robust accuracy too high",
            hint="remove the softmax from its end; the classes that it names stay the same",
        )


def _facts(
    predict: Predict,
    images: NDArray[np.float32],
    classes: int,
    batch: int,
    *,
    training_parts: tuple[str, ...],
    module: nn.Module | None,
) -> ModelFacts:
    logits = _logits(predict, images, batch, classes)
    finite = np.isfinite(logits).all(axis=1)
    if not finite.any():
        raise DataError(
            f"the model gives NaN or infinity for all of {len(images)} images",
            hint="its weights are damaged, its training diverged, or it does not take pixels in "
            "[0, 1]",
        )
    refuse_probabilities(logits)
    scale = float(np.abs(logits[finite]).max()) or 1.0
    again = _logits(predict, images, batch, classes)
    few = range(min(_ALONE, len(images)))
    alone = np.concatenate([predict(images[at : at + 1]) for at in few])
    ordered = np.sort(logits[finite], axis=1)

    def share(loss: Callable[[torch.Tensor], torch.Tensor]) -> float:
        assert module is not None
        return zero_gradient_share(module, images[finite], loss, batch=batch)

    return ModelFacts(
        n=len(images),
        classes=classes,
        nonfinite=tuple(np.flatnonzero(~finite).tolist()),
        training_parts=training_parts,
        repeat_difference=_difference(logits, again) / scale,
        batch_difference=_difference(logits[: len(alone)], alone) / scale,
        unit_range=_in_unit_range(logits[finite]),
        tie_rate=float(np.mean(ordered[:, -1] == ordered[:, -2])),
        distinct_logits=len(np.unique(logits[finite])),
        largest_logit=float(np.abs(logits[finite]).max()),
        zero_gradients=share(cross_entropy_of_prediction) if module else None,
        zero_margin_gradients=share(margin_of_prediction) if module else None,
        optimizes=computes_gradients(module, images[:_ALONE]) if module else None,
    )


def _checks(facts: ModelFacts) -> Iterator[Check]:
    places = ", ".join(map(str, facts.nonfinite[:_SHOWN]))
    more = len(facts.nonfinite) - _SHOWN
    yield at_most(
        "finite_logits",
        len(facts.nonfinite),
        0,
        unit="images",
        meaning="the model gives NaN or infinity for images "
        f"{places}{f' and {more} more' if more > 0 else ''}: they count as broken from the start, "
        "and all accuracies are too low",
    )
    yield at_most(
        "deterministic",
        facts.repeat_difference,
        _SAME,
        unit="of the largest logit",
        meaning="equal images give different logits: the model is random or keeps a state. Every "
        "figure of attacks is too high and changes from run to run; attack the mean over its "
        "randomness instead",
    )
    yield at_most(
        "alone_as_in_batch",
        facts.batch_difference,
        _SAME_IN_BATCH,
        unit="of the largest logit",
        meaning="an image alone gives other logits than in a batch, e.g. by the batch's own "
        "statistics: all accuracies depend on the batch, and attacks gain or lose by it",
    )
    yield at_most(
        "tie_rate",
        facts.tie_rate,
        _TIES,
        unit="of images",
        meaning=f"top logits tie ({facts.distinct_logits} distinct values in all): the output is "
        "constant or coarsely quantized, which blinds attacks that follow scores; the figure of "
        "Square is too high",
    )
    yield at_most(
        "unit_range",
        float(facts.unit_range),
        0,
        unit="models",
        meaning="all outputs lie in [0, 1], as those of a sigmoid do: the losses of attacks "
        "flatten on them, and all figures are too high; remove it from the model's end",
    )
    if facts.zero_gradients is None or facts.zero_margin_gradients is None:
        return
    yield at_most(
        "zero_gradients",
        100 * facts.zero_gradients,
        SLACK_POINTS,
        unit="percent of images",
        meaning="the cross-entropy has no gradient: FGSM, PGD, MI-FGSM and APGD-CE stand still, "
        "and their figures mean nothing"
        + (
            ""
            if facts.zero_margin_gradients > facts.zero_gradients / 2
            else f" (logits reach {facts.largest_logit:.3g}, where it underflows; the margin's "
            "gradient is there: trust CW, APGD-DLR, APGD-T and FAB-T)"
        ),
    )
    yield at_most(
        "zero_margin_gradients",
        100 * facts.zero_margin_gradients,
        SLACK_POINTS,
        unit="percent of images",
        meaning="the logits themselves have no gradient: no attack with gradients means anything, "
        "only Square does; attack a differentiable twin of the model",
    )
    yield at_most(
        "no_optimization",
        float(bool(facts.optimizes)),
        0,
        unit="models",
        meaning="the model computes gradients when it is called, as a defense that purifies its "
        "input does: attacks do not see through that, and all figures are too high",
    )


def _logits(
    predict: Predict, images: NDArray[np.float32], batch: int, classes: int
) -> NDArray[np.float32]:
    parts = []
    for start in range(0, len(images), batch):
        part = images[start : start + batch]
        found = predict(part)
        if found.shape != (len(part), classes):
            raise DataError(
                f"the model gives {found.shape} for {len(part)} images instead of logits, "
                f"({len(part)}, {classes})",
                hint="it must end in a classifier for the classes of the data",
            )
        parts.append(found)
    return np.concatenate(parts)


def _ask(module: nn.Module, images: NDArray[np.float32]) -> NDArray[np.float32]:
    # Gradients stay allowed, for models that take them themselves.
    output: object = module(torch.from_numpy(images).to(device_of(module)))
    if not isinstance(output, torch.Tensor):
        raise DataError(
            f"the model gives `{type(output).__name__}` instead of a tensor of logits",
            hint="wrap it in a module that returns its logits alone",
        )
    logits: NDArray[np.float32] = output.detach().float().cpu().numpy()
    return logits


def _difference(first: NDArray[np.float32], second: NDArray[np.float32]) -> float:
    """Return the largest difference; where one is not finite and the other is, it is infinite."""
    both = np.isfinite(first) & np.isfinite(second)
    if not np.array_equal(np.isfinite(first), np.isfinite(second)):
        return float("inf")
    return float(np.abs(first[both] - second[both]).max(initial=0.0))


def _in_unit_range(logits: NDArray[np.float32]) -> bool:
    return bool(len(logits) and logits.min() >= 0 and logits.max() <= 1)
