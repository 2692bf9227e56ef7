"""Deserialize the plan on stdin, and nothing else: `python -m hwnas_export.tensorrt_probe`.

A process of its own, because TensorRT can crash over a plan (`hwnas_export.tensorrt_plan`).
"""

from __future__ import annotations

import sys

from hwnas.core.errors import HwnasError
from hwnas_export.tensorrt_api import error_log, trt_module


def refusal(plan: bytes) -> str:
    """Return why TensorRT does not take a plan, empty where it does.

    Raises:
        MissingDependencyError: TensorRT is not installed.
        TargetError: It cannot be loaded.
    """
    trt = trt_module()
    log = error_log(trt)
    runtime = trt.Runtime(log)
    runtime.engine_host_code_allowed = False
    if runtime.deserialize_cuda_engine(plan) is not None:
        return ""
    return "\n  ".join(dict.fromkeys(log.errors)) or "it does not say why"


def main() -> int:
    """Return 0 where the plan is taken; say on stderr why it is not."""
    try:
        words = refusal(sys.stdin.buffer.read())
    except HwnasError as error:
        words = str(error)
    sys.stderr.write(words)
    return 1 if words else 0


if __name__ == "__main__":
    sys.exit(main())
