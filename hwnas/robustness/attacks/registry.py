"""All attacks by name, with what each needs and what it is run with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from hwnas.core.errors import ConfigError, nearest
from hwnas.robustness.attacks.apgd import apgd, apgd_targeted
from hwnas.robustness.attacks.carlini import SEARCHES, cw_l2
from hwnas.robustness.attacks.fab import fab_targeted
from hwnas.robustness.attacks.losses import AttackLoss, cross_entropy, dlr
from hwnas.robustness.attacks.pgd import Loss, fgsm, mi_fgsm, pgd
from hwnas.robustness.attacks.square import square_l2, square_linf

if TYPE_CHECKING:
    from torch import Tensor

    from hwnas.robustness.attacks.losses import Forward
    from hwnas.robustness.threat import ThreatModel

# AutoAttack's own: Croce & Hein 2020, section 5.
_STEPS = 100
_CLASSES = 9
_QUERIES = 5000
# CW's Adam, at the paper's rate of 0.01, has settled by then.
_CW_STEPS = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Samples under attack, all of them classified right, and what the adversary may do.

    Attributes:
        model: Maps images to logits.
        images: (N, channels, height, width).
        labels: (N,), int64.
        threat: The threat model.
        seed: Seed of this batch's random draws.
        queries: The most queries of Square per sample.
        tick: To be called after each step.
    """

    model: Forward
    images: Tensor
    labels: Tensor
    threat: ThreatModel
    seed: int
    queries: int
    tick: Callable[[], None]

    @property
    def generator(self) -> torch.Generator:
        """A new generator at the seed: the reference, too, starts each batch from it."""
        return torch.Generator().manual_seed(self.seed)


@dataclass(frozen=True, slots=True, kw_only=True)
class Attack:
    """One attack.

    Attributes:
        title: What tables call it.
        run: Returns a point for each sample of a batch. None for an ensemble.
        steps: How often `run` ticks at most, given threat model and queries.
        settings: What it runs with, one line, given threat model and queries.
        parts: Of an ensemble, the attacks in their order; each gets what those before left.
        black_box: Asks for logits alone.
        least_classes: Classes that its loss needs.
        normalized: Whether it means anything under the protocol "normalized".
    """

    title: str
    run: Callable[[Batch], Tensor] | None
    steps: Callable[[ThreatModel, int], int]
    settings: Callable[[ThreatModel, int], str]
    parts: tuple[str, ...] = ()
    black_box: bool = False
    least_classes: int = 2
    normalized: bool = False


def _fgsm(batch: Batch) -> Tensor:
    return fgsm(
        batch.model,
        batch.images,
        batch.labels,
        eps=batch.threat.eps_pixels,
        norm=batch.threat.norm,
    )


def _pgd(batch: Batch, loss: Loss = "cross-entropy") -> Tensor:
    threat = batch.threat
    return pgd(
        batch.model,
        batch.images,
        batch.labels,
        eps=threat.eps_pixels,
        norm=threat.norm,
        steps=threat.steps,
        step_size=threat.step_size_pixels,
        restarts=threat.restarts,
        loss=loss,
        generator=batch.generator,
        tick=batch.tick,
    )


def _mi_fgsm(batch: Batch) -> Tensor:
    return mi_fgsm(
        batch.model,
        batch.images,
        batch.labels,
        eps=batch.threat.eps_pixels,
        norm=batch.threat.norm,
        steps=batch.threat.steps,
        tick=batch.tick,
    )


def _cw(batch: Batch) -> Tensor:
    if batch.threat.norm == "linf":
        return _pgd(batch, "margin")
    return cw_l2(
        batch.model,
        batch.images,
        batch.labels,
        eps=batch.threat.eps_pixels,
        steps=_CW_STEPS,
        tick=batch.tick,
    )


def _apgd(batch: Batch, loss: AttackLoss) -> Tensor:
    return apgd(
        batch.model,
        batch.images,
        batch.labels,
        norm=batch.threat.norm,
        eps=batch.threat.eps_pixels,
        loss=loss,
        steps=_STEPS,
        generator=batch.generator,
        tick=batch.tick,
    )


def _apgd_t(batch: Batch) -> Tensor:
    return apgd_targeted(
        batch.model,
        batch.images,
        batch.labels,
        norm=batch.threat.norm,
        eps=batch.threat.eps_pixels,
        classes=_CLASSES,
        steps=_STEPS,
        generator=batch.generator,
        tick=batch.tick,
    )


def _fab_t(batch: Batch) -> Tensor:
    return fab_targeted(
        batch.model,
        batch.images,
        batch.labels,
        norm=batch.threat.norm,
        eps=batch.threat.eps_pixels,
        classes=_CLASSES,
        steps=_STEPS,
        tick=batch.tick,
    )


def _square(batch: Batch) -> Tensor:
    # AutoAttack ends at 5,000 queries of a schedule of 10,000. Fewer queries go as far along it.
    span = 2 * min(batch.queries, _QUERIES)
    if batch.threat.norm == "linf":
        return square_linf(
            batch.model,
            batch.images,
            batch.labels,
            eps=batch.threat.eps_pixels,
            queries=batch.queries,
            span=span,
            generator=batch.generator,
            tick=batch.tick,
        )
    return square_l2(
        batch.model,
        batch.images,
        batch.labels,
        eps=batch.threat.eps_pixels,
        queries=batch.queries,
        span=span,
        seed=batch.seed,
        tick=batch.tick,
    )


def _pgd_settings(threat: ThreatModel, queries: int) -> str:
    restarts = f"{threat.restarts} random start" + ("s" if threat.restarts > 1 else "")
    return f"{threat.steps} steps of {threat.step_size_pixels:.3g}, {restarts}"


def _cw_settings(threat: ThreatModel, queries: int) -> str:
    if threat.norm == "linf":
        return f"margin loss, {_pgd_settings(threat, queries)}"
    return f"smallest change, {SEARCHES} searches of {_CW_STEPS} Adam steps"


def _square_settings(threat: ThreatModel, queries: int) -> str:
    return f"{queries} queries at most"


def _pgd_steps(threat: ThreatModel, queries: int) -> int:
    return threat.steps * threat.restarts


def _cw_steps(threat: ThreatModel, queries: int) -> int:
    return _pgd_steps(threat, queries) if threat.norm == "linf" else SEARCHES * _CW_STEPS


_TARGETED = f"{_STEPS} steps toward each of the {_CLASSES} likeliest wrong classes"

ATTACKS: dict[str, Attack] = {
    "fgsm": Attack(
        title="FGSM",
        run=_fgsm,
        steps=lambda threat, queries: 1,
        settings=lambda threat, queries: "1 step of eps",
        normalized=True,
    ),
    "pgd": Attack(title="PGD", run=_pgd, steps=_pgd_steps, settings=_pgd_settings, normalized=True),
    "mi-fgsm": Attack(
        title="MI-FGSM",
        run=_mi_fgsm,
        steps=lambda threat, queries: threat.steps,
        settings=lambda threat, queries: f"{threat.steps} steps of eps/{threat.steps}, momentum 1",
        normalized=True,
    ),
    "cw": Attack(title="CW", run=_cw, steps=_cw_steps, settings=_cw_settings, normalized=True),
    "apgd-ce": Attack(
        title="APGD-CE",
        run=lambda batch: _apgd(batch, cross_entropy),
        steps=lambda threat, queries: _STEPS,
        settings=lambda threat, queries: f"{_STEPS} steps, 1 random start",
    ),
    "apgd-dlr": Attack(
        title="APGD-DLR",
        run=lambda batch: _apgd(batch, dlr),
        steps=lambda threat, queries: _STEPS,
        settings=lambda threat, queries: f"{_STEPS} steps, 1 random start",
        least_classes=3,
    ),
    "apgd-t": Attack(
        title="APGD-T",
        run=_apgd_t,
        steps=lambda threat, queries: _STEPS * _CLASSES,
        settings=lambda threat, queries: _TARGETED,
        least_classes=4,
    ),
    "fab-t": Attack(
        title="FAB-T",
        run=_fab_t,
        steps=lambda threat, queries: _STEPS * _CLASSES,
        settings=lambda threat, queries: _TARGETED,
    ),
    "square": Attack(
        title="Square",
        run=_square,
        steps=lambda threat, queries: queries,
        settings=_square_settings,
        black_box=True,
    ),
    "autoattack": Attack(
        title="AutoAttack",
        run=None,
        steps=lambda threat, queries: 0,
        settings=lambda threat, queries: "standard: APGD-CE, APGD-T, FAB-T, Square",
        parts=("apgd-ce", "apgd-t", "fab-t", "square"),
        least_classes=4,
    ),
}
"""In the order in which tables list them. `autoattack` is the reference's standard set."""


def check_attacks(names: Sequence[str], threat: ThreatModel) -> None:
    """Check that attacks are known and mean something under a threat model.

    Raises:
        ConfigError: None, one twice, one unknown, or one that the protocol does not allow.
    """
    if not names:
        raise ConfigError("no attack is named", hint=f"known: {', '.join(ATTACKS)}")
    for name in names:
        if name not in ATTACKS:
            similar = nearest(name, ATTACKS)
            hint = f"did you mean {similar[0]!r}?" if similar else f"known: {', '.join(ATTACKS)}"
            raise ConfigError(f"there is no attack {name!r}", hint=hint)
        if threat.protocol == "normalized" and not ATTACKS[name].normalized:
            usable = ", ".join(key for key, attack in ATTACKS.items() if attack.normalized)
            raise ConfigError(
                f'{name} works within the box [0, 1] of pixels: protocol "normalized" has no '
                "figures to compare it with",
                hint=f'use {usable}, or protocol = "pixel"',
            )
    if len(set(names)) < len(names):
        raise ConfigError(f"an attack is named twice: {', '.join(names)}")


def check_classes(names: Sequence[str], classes: int) -> None:
    """Check that a model has the classes that the attacks' losses need.

    Raises:
        ConfigError: It has too few.
    """
    for name in names:
        if classes < ATTACKS[name].least_classes:
            usable = [key for key, attack in ATTACKS.items() if classes >= attack.least_classes]
            raise ConfigError(
                f"{name} needs at least {ATTACKS[name].least_classes} classes, for its ratio of "
                f"logits; the model has {classes}",
                hint=f"use {', '.join(usable)}",
            )
