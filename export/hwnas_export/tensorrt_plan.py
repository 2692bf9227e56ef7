"""A TensorRT plan that was built elsewhere, and what is seen to before it is deserialized.

To deserialize a plan is to run native code, and TensorRT has been seen to crash on one that is not
for the machine at hand. So its hash comes first, then the GPU that it is for, and then a process of
its own that may crash in our place.
"""

from __future__ import annotations

import signal
import subprocess
import sys
from dataclasses import dataclass

from hwnas.core.artifacts import sha256_of
from hwnas.core.errors import ArtifactError, ConfigError, TargetError
from hwnas_export.cuda_driver import cuda_driver

_PROBE = "hwnas_export.tensorrt_probe"
_PROBE_SECONDS = 300.0
_REBUILD = "build it on this machine from its ONNX model: hwnas rebuild BUNDLE --out NEW"


@dataclass(frozen=True, slots=True, kw_only=True)
class GivenPlan:
    """A plan, with what must be known of it.

    Attributes:
        content: The serialized engine.
        sha256: What it must hash to, from where it can be relied on.
        compute_capabilities: Of the GPUs that it was built for, e.g. ("8.6", "8.9").

    Raises:
        ConfigError: The hash or the GPUs are not named.
    """

    content: bytes
    sha256: str
    compute_capabilities: tuple[str, ...]

    def __post_init__(self) -> None:
        if not self.sha256 or not self.compute_capabilities:
            raise ConfigError(
                "a plan comes with its SHA-256 and the compute capabilities that it was built for",
                hint="both are in the sidecar of a bundle's engine",
            )


def check_plan(plan: GivenPlan) -> None:
    """Check that a plan is the one that was meant, and for the GPU that is here.

    Raises:
        ArtifactError: It hashes to something else.
        TargetError: There is no GPU here, or one that it was not built for.
    """
    if sha256_of(plan.content) != plan.sha256:
        raise ArtifactError(
            "the plan is not the one that its sidecar describes: its SHA-256 differs",
            hint="restore it, or " + _REBUILD,
        )
    device = cuda_driver().device()
    here = ".".join(map(str, device.compute_capability))
    if here not in plan.compute_capabilities:
        raise TargetError(
            f"the plan is for GPUs of compute capability {', '.join(plan.compute_capabilities)}, "
            f"and {device.name} has {here}",
            hint=_REBUILD,
        )


def probe_plan(plan: bytes) -> None:
    """Deserialize a plan whose hash was checked, in a process that may crash over it.

    Raises:
        TargetError: It crashes, does not come back, or TensorRT refuses the plan: its own words
            are in it.
    """
    try:
        answer = subprocess.run(
            [sys.executable, "-m", _PROBE], input=plan, capture_output=True, timeout=_PROBE_SECONDS
        )
    except subprocess.TimeoutExpired as error:
        raise TargetError(
            f"TensorRT has not deserialized the plan in {_PROBE_SECONDS:g} s", hint=_REBUILD
        ) from error
    if answer.returncode < 0:
        how = signal.Signals(-answer.returncode).name
        raise TargetError(f"TensorRT crashes over the plan ({how})", hint=_REBUILD)
    if answer.returncode:
        words = answer.stderr.decode(errors="replace").strip()
        raise TargetError(f"TensorRT does not take the plan: {words}", hint=_REBUILD)
