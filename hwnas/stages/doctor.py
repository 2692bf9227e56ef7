"""`hwnas doctor`: what can be used here."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hwnas_profilers.targets import TargetStatus


def doctor() -> tuple[TargetStatus, ...]:
    """Say which targets can be used here and, for each that cannot, what to install.

    Returns:
        One status per target and device library that hwnas knows.
    """
    from hwnas_profilers.targets import target_statuses

    return target_statuses()
