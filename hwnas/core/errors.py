"""The errors that hwnas raises on purpose.

    HwnasError
    ├── ConfigError (ValueError)               a setting: unknown, of a wrong type, contradictory
    ├── InputFileError (OSError)               a file that is missing, unreadable or unwritable
    ├── DataError (ValueError)                 a data set that cannot be used as asked
    ├── ArtifactError (ValueError)             an artifact changed, cut or of another schema
    ├── MissingDependencyError (ImportError)   an optional package that is not installed
    ├── TargetError (RuntimeError)             a target unknown, or of no use on this machine
    ├── LatencyTableError (ValueError)         a latency table that cannot be used
    │   ├── LatencyTableMismatch               ... because it was measured for something else
    │   └── LatencyTableMiss (LookupError)     ... because an operator is not in it
    ├── BudgetError (ValueError)               a budget that no network of the space meets
    ├── TrainingDivergedError (ArithmeticError)  a loss that is no longer a finite number
    ├── ProcessError (RuntimeError)            one of several processes of a run that is lost
    ├── ExportError (RuntimeError)             a network that could not be exported as promised
    ├── UnboundedOperationError (NotImplementedError)  an operation without a sound bound
    ├── CertificateBrokenError (ArithmeticError)  a certified image that an attack broke: our fault
    ├── StudyError (RuntimeError)              a study of which an arm came to no figures
    ├── UnfinishedError (RuntimeError)         work that stopped as asked, to be gone on with
    └── GateFailedError (AssertionError)       a gate of `hwnas verify` or a check of `hwnas attack`

A message says what is wrong and where; `hint` says how to mend it. The command line prints both and
exits with `exit_code`.
"""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from collections.abc import Iterable


class HwnasError(Exception):
    """Root of all errors that hwnas raises on purpose.

    Args:
        message: What is wrong, and where.
        hint: How to mend it: the nearest alternative, or the command to run.
    """

    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\n  hint: {self.hint}" if self.hint else self.message


class ConfigError(HwnasError, ValueError):
    """A setting is unknown, of a wrong type, out of range, or contradicts another."""


class InputFileError(HwnasError, OSError):
    """A file is missing, unreadable or unwritable."""


class DataError(HwnasError, ValueError):
    """A data set cannot be used as asked."""


class ArtifactError(HwnasError, ValueError):
    """An artifact was changed after it was made, is incomplete, or has another schema."""


class MissingDependencyError(HwnasError, ImportError):
    """An optional package is not installed."""


class TargetError(HwnasError, RuntimeError):
    """A target is unknown, or cannot be used on this machine."""


class LatencyTableError(HwnasError, ValueError):
    """A latency table cannot be read or used."""


class LatencyTableMismatch(LatencyTableError):
    """A latency table was measured for another target, space or setting."""


class LatencyTableMiss(LatencyTableError, LookupError):
    """An operator is not in the latency table."""


class BudgetError(HwnasError, ValueError):
    """No network of the space meets the budget."""


class TrainingDivergedError(HwnasError, ArithmeticError):
    """A loss is no longer a finite number."""


class ProcessError(HwnasError, RuntimeError):
    """Of the processes that torchrun started, one was lost or computed something else."""


class ExportError(HwnasError, RuntimeError):
    """A network could not be exported as promised."""


class StudyError(HwnasError, RuntimeError):
    """Of a study, one or more arms came to no figures; the others did.

    Attributes:
        result: What the command that raises it would have returned.
    """

    def __init__(self, message: str, *, hint: str = "", result: object = None) -> None:
        super().__init__(message, hint=hint)
        self.result = result


class UnfinishedError(HwnasError, RuntimeError):
    """Work stopped at a checkpoint after the time that it was given; run again, it goes on.

    Attributes:
        result: What the command that raises it would have returned, as far as it got.
    """

    exit_code: ClassVar[int] = 4

    def __init__(self, message: str, *, hint: str = "", result: object = None) -> None:
        super().__init__(message, hint=hint)
        self.result = result


class UnboundedOperationError(HwnasError, NotImplementedError):
    """A network runs an operation that no sound bound is known of."""


class CertificateBrokenError(HwnasError, ArithmeticError):
    """An attack broke an image that had been certified: a bound of hwnas is wrong."""


class GateFailedError(HwnasError, AssertionError):
    """An engine failed gates of `hwnas verify`, or an evaluation checks of `hwnas attack`.

    Attributes:
        result: What the command that raises it would have returned: a failed gate is a finding.
    """

    exit_code: ClassVar[int] = 3

    def __init__(self, message: str, *, hint: str = "", result: object = None) -> None:
        super().__init__(message, hint=hint)
        self.result = result


def nearest(name: str, candidates: Iterable[str], *, count: int = 1) -> tuple[str, ...]:
    """Return the candidates most similar to a misspelled name, the best first.

    >>> nearest("budgt_ms", ["epochs", "budget_ms"])
    ('budget_ms',)
    """
    return tuple(difflib.get_close_matches(name, list(candidates), n=count, cutoff=0.5))
