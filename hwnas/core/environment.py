"""What this machine and this code are: the provenance that every artifact carries."""

from __future__ import annotations

import datetime
import functools
import os
import platform
import subprocess
from dataclasses import dataclass, field, replace
from importlib import metadata
from pathlib import Path

RECORDED_PACKAGES = (
    "numpy",
    "torch",
    "onnx",
    "onnxruntime",
    "onnxruntime-gpu",
    "onnxscript",
    "openvino",
    "tensorrt",
    "tensorrt-rtx",
    "pycuda",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """The machine that something was measured on.

    Attributes:
        name: The processor's name, as the system gives it.
        machine: The instruction set, e.g. `x86_64`.
        cores: Logical cores that this process may use.
        memory_mib: Physical memory; 0 where the system does not tell.
        system: Operating system and release.
        governor: Frequency governor of the first core; empty where not readable.
        driver: Version of the device's driver; empty where it has none.
        facts: What else a board says of itself, e.g. its power mode.
    """

    name: str
    machine: str
    cores: int
    memory_mib: int
    system: str
    governor: str = ""
    driver: str = ""
    facts: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Provenance:
    """Who made an artifact: package, code, device, libraries, time."""

    hwnas: str
    git_commit: str
    git_dirty: bool
    python: str
    packages: dict[str, str]
    device: Device
    utc: str


def this_device(kind: str = "cpu") -> Device:
    """Describe this machine, or the GPU in it.

    Args:
        kind: `cpu` or `cuda`. A GPU's name takes the processor's place, as it is what is measured.
    """
    return _this_machine() if kind == "cpu" else _this_gpu()


@functools.cache
def _this_gpu() -> Device:
    """Ask the driver's own tool, which is there wherever the driver is."""
    query = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, timeout=20, check=True)
        name, driver = answer.stdout.splitlines()[0].split(", ")
    except (OSError, subprocess.SubprocessError, IndexError, ValueError):
        name, driver = "unknown NVIDIA GPU", ""
    machine = _this_machine()
    return replace(machine, name=name, driver=driver, facts={"processor": machine.name})


@functools.cache
def _this_machine() -> Device:
    try:
        memory_mib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2**20
    except (ValueError, OSError, AttributeError):
        memory_mib = 0
    return Device(
        name=_processor_name(),
        machine=platform.machine(),
        cores=usable_cores(),
        memory_mib=memory_mib,
        system=f"{platform.system()} {platform.release()}",
        governor=_first_line("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
    )


def usable_cores() -> int:
    """Return the logical cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def package_version(name: str) -> str:
    """Return an installed package's version, or an empty string."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return ""


def installed_packages() -> dict[str, str]:
    """Return the versions of those of `RECORDED_PACKAGES` that are installed here."""
    versions = {name: package_version(name) for name in RECORDED_PACKAGES}
    return {name: version for name, version in versions.items() if version}


def provenance(device: Device | None = None, packages: dict[str, str] | None = None) -> Provenance:
    """Describe this code, this machine and this moment.

    Args:
        device: The device, where it is not this machine.
        packages: Versions of the libraries on it, where they are not this machine's.
    """
    commit, dirty = _git_state()
    return Provenance(
        hwnas=package_version("hwnas"),
        git_commit=commit,
        git_dirty=dirty,
        python=platform.python_version(),
        packages=installed_packages() if packages is None else packages,
        device=device or this_device(),
        utc=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    )


@functools.cache
def _git_state() -> tuple[str, bool]:
    """Return the commit of the checkout that this package runs from, and whether it was edited."""
    root = Path(__file__).parents[2]
    if not (root / ".git").exists():
        return "", False
    try:
        git = ["git", "-C", str(root)]
        head = subprocess.run(
            [*git, "rev-parse", "HEAD"], capture_output=True, text=True, timeout=5, check=True
        )
        status = subprocess.run(
            [*git, "status", "--porcelain", "-uno"],
            capture_output=True,
            text=True,
            timeout=5,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return "", False
    return head.stdout.strip(), bool(status.stdout.strip())


def _processor_name() -> str:
    """Return the processor's name; boards with a device tree name themselves there."""
    board = _first_line("/proc/device-tree/model").rstrip("\0")
    if board:
        return board
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _first_line(path: str) -> str:
    try:
        return Path(path).read_text(errors="replace").splitlines()[0].strip()
    except (OSError, IndexError):
        return ""
