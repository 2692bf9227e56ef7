"""Signs of gradient masking as gates: does the twin's white-box figure stand?

What is measured and how it is judged is `hwnas.robustness`'s; here the checks become gates.
"""

from __future__ import annotations

from hwnas.robustness.criteria import masking_checks
from hwnas.robustness.signs import MaskingSigns, masking_signs
from hwnas.verify.gates import Gate, Tolerances, gate_of_check

__all__ = ["MaskingSigns", "masking_gates", "masking_signs"]


def masking_gates(signs: MaskingSigns, tolerances: Tolerances) -> tuple[Gate, ...]:
    """Judge the signs."""
    checks = masking_checks(signs, tolerances.rise_points)
    return tuple(map(gate_of_check, checks))
