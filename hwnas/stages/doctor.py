"""`hwnas doctor`: what can be used here."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hwnas_profilers.targets import TargetStatus


def doctor() -> tuple[TargetStatus, ...]:
    """Say which targets can be used here and, for each that cannot, what to install.

    Returns:
        One status per target, then of ssh and of the meters of energy.
    """
    from hwnas_profilers.energy import energy_meter_status
    from hwnas_profilers.targets import TargetStatus, target_statuses

    meters = tuple(
        TargetStatus(
            name=f"energy of {meter.device}",
            usable=meter.usable,
            version=meter.name if meter.usable else "",
            reason=meter.reason,
            fix=meter.fix,
        )
        for meter in energy_meter_status()
    )
    return target_statuses() + meters
