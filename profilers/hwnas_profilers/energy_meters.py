"""The energy meters that hwnas knows: RAPL for processors, NVML for NVIDIA GPUs.

A meter that cannot be used says why and what would help; none ever answers 0.
"""

from __future__ import annotations

import importlib
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, final

from hwnas.core.errors import HwnasError, MissingDependencyError, TargetError

if TYPE_CHECKING:
    from hwnas_profilers.energy import EnergyMeter

POWERCAP = Path("/sys/class/powercap")
"""Where Linux keeps the counters of RAPL, for Intel and AMD processors alike."""

_TOP_ZONE = re.compile(r"intel-rapl(?:-mmio)?:\d+")
_UJ_PER_MJ = 1_000


@dataclass(frozen=True, slots=True, kw_only=True)
class EnergyMeterStatus:
    """Whether the energy of a device can be metered here.

    Attributes:
        device: `cpu` or `cuda`.
        name: The meter; empty where there is none.
        usable: Whether it can be read here and now.
        reason: Why not; empty where it can.
        fix: What would help; empty where nothing is needed, or nothing would.
    """

    device: Literal["cpu", "cuda"]
    name: str
    usable: bool
    reason: str = ""
    fix: str = ""


def energy_meter_for(target_device: Literal["cpu", "cuda"]) -> EnergyMeter:
    """Return the meter of the device that a target computes on.

    Args:
        target_device: `cpu`, or `cuda` for the first GPU that this process may see.

    Raises:
        TargetError: It cannot be metered here; the message says why, and the hint what would help.
        MissingDependencyError: nvidia-ml-py is not installed.
    """
    return RaplMeter() if target_device == "cpu" else NvmlMeter()


def energy_meter_status() -> tuple[EnergyMeterStatus, ...]:
    """Return for each kind of device whether its energy can be metered here."""
    return tuple(_status(device) for device in ("cpu", "cuda"))


@final
class RaplMeter:
    """Energy of all processor packages, by the counters that RAPL keeps.

    The package is metered whole: all cores, the caches and the graphics on it. Memory is not part
    of it; not every processor counts that.

    Args:
        root: The powercap tree; None takes the system's.

    Raises:
        TargetError: There is no counter here, or it may not be read.

    References:
        Linux, Documentation/power/powercap/powercap.rst. A counter goes back to 0 behind
        `max_energy_range_uj`; at 200 W that is after some 20 minutes, many times a window.
    """

    resolution_uj = 1

    def __init__(self, root: Path | None = None) -> None:
        root = root or POWERCAP
        packages = _package_zones(root)
        if not packages:
            raise TargetError(
                f"there is no RAPL counter of a processor package in {root}",
                hint="RAPL is on Intel processors since 2011 and AMD's since Zen, with the kernel "
                "module intel_rapl_msr (`sudo modprobe intel_rapl_msr`); virtual machines and "
                "containers mostly hide it",
            )
        self.name = f"RAPL {' + '.join(packages)}"
        self._counters = [zone / "energy_uj" for zone in packages.values()]
        self._ranges_uj = [_number_in(zone / "max_energy_range_uj") for zone in packages.values()]
        self._last_uj = [_number_in(counter) for counter in self._counters]
        self._total_uj = sum(self._last_uj)

    def read_uj(self) -> int:
        """See `EnergyMeter`. A counter that wrapped around since the last reading is mended."""
        for index, counter in enumerate(self._counters):
            now_uj = _number_in(counter)
            step_uj = now_uj - self._last_uj[index]
            if step_uj < 0:
                step_uj += self._ranges_uj[index]
            if step_uj < 0:
                raise TargetError(
                    f"{counter} went back from {self._last_uj[index]} to {now_uj} uJ, more than "
                    f"its range of {self._ranges_uj[index]} uJ explains"
                )
            self._last_uj[index] = now_uj
            self._total_uj += step_uj
        return self._total_uj


@final
class NvmlMeter:
    """Energy of one NVIDIA GPU's board, by the counter that its driver keeps.

    Raises:
        MissingDependencyError: nvidia-ml-py is not installed.
        TargetError: There is no driver, no such GPU, or it has no such counter.

    References:
        NVIDIA, NVML API Reference: nvmlDeviceGetTotalEnergyConsumption, in millijoules since the
        driver was loaded; Volta or newer.
    """

    resolution_uj = _UJ_PER_MJ

    def __init__(self) -> None:
        try:
            pynvml: Any = importlib.import_module("pynvml")
        except ModuleNotFoundError as error:
            raise MissingDependencyError(
                "the energy of a GPU is read through the package nvidia-ml-py, which is not "
                "installed",
                hint="pip install nvidia-ml-py",
            ) from error
        self._nvml = pynvml
        self._last_uj = 0
        try:
            pynvml.nvmlInit()
            self._handle = _visible_gpu(pynvml)
            self.name = f"NVML {_text(pynvml.nvmlDeviceGetName(self._handle))}"
        except pynvml.NVMLError as error:
            raise _driver_error(pynvml, error) from error
        self.read_uj()

    def read_uj(self) -> int:
        """See `EnergyMeter`."""
        try:
            total_mj = self._nvml.nvmlDeviceGetTotalEnergyConsumption(self._handle)
        except self._nvml.NVMLError as error:
            raise _driver_error(self._nvml, error) from error
        total_uj = int(total_mj) * _UJ_PER_MJ
        if total_uj < self._last_uj:
            raise TargetError(
                f"the energy counter of {self.name} went back: its driver was loaded anew",
                hint="run again",
            )
        self._last_uj = total_uj
        return total_uj


def _driver_error(nvml: Any, error: Exception) -> TargetError:
    if isinstance(error, nvml.NVMLError_LibraryNotFound):
        return TargetError(
            "there is no NVIDIA driver here (its library libnvidia-ml is not found)",
            hint="use a machine with an NVIDIA GPU and driver",
        )
    if isinstance(error, nvml.NVMLError_NotSupported):
        return TargetError(
            "this GPU keeps no counter of its energy",
            hint="GPUs from Volta (2017) on do; virtual ones mostly do not",
        )
    return TargetError(f"the NVIDIA driver does not tell the GPU's energy: {error}")


def _package_zones(root: Path) -> dict[str, Path]:
    """Return the powercap zones of the processor packages, by name.

    Zones of their parts (cores, graphics, memory) have a second number, and are in the package's
    figure already or no part of it. A zone `psys` would count the packages again, and
    `intel-rapl-mmio` shows the counter of package-0 in another way: a name counts once.
    """
    zones: dict[str, Path] = {}
    try:
        folders = sorted(folder for folder in root.iterdir() if _TOP_ZONE.fullmatch(folder.name))
    except OSError:
        return {}
    for folder in folders:  # `intel-rapl:N` sorts after `intel-rapl-mmio:N`, and takes its place
        name = _text_in(folder / "name")
        if name.startswith("package-"):
            zones[name] = folder
    return dict(sorted(zones.items()))


def _text_in(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii").strip()
    except PermissionError as error:
        raise TargetError(
            f"the energy counter {path} may be read by root alone: Linux hides it, as it betrays "
            "what others compute (CVE-2020-8694)",
            hint=f"on a machine of your own: `sudo chmod a+r {path.parent.parent}/*/energy_uj`, "
            "until the next boot; or run hwnas as root",
        ) from error
    except (OSError, UnicodeDecodeError) as error:
        raise TargetError(f"the energy counter {path} cannot be read: {error}") from error


def _number_in(path: Path) -> int:
    text = _text_in(path)
    if not text.isdecimal():
        raise TargetError(f"{path} holds {text!r}, not a number of microjoules")
    return int(text)


def _visible_gpu(nvml: Any) -> object:
    """Return NVML's handle of the first GPU that CUDA shows to this process.

    NVML numbers all GPUs in the order of the bus and knows nothing of CUDA_VISIBLE_DEVICES. CUDA
    puts the fastest first, unless it is told otherwise: where GPUs differ, its number is no help.

    Raises:
        TargetError: It is not clear which GPU that is, or there is none.
    """
    first = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0].strip()
    if first.startswith("GPU-"):
        return nvml.nvmlDeviceGetHandleByUUID(first)
    if not first.isdecimal():
        raise TargetError(
            f"CUDA_VISIBLE_DEVICES begins with {first!r}: no GPU, or a part of one, and NVML "
            "meters whole GPUs",
            hint="set it to the number or UUID of a GPU",
        )
    count = nvml.nvmlDeviceGetCount()
    if int(first) >= count:
        raise TargetError(f"there is no GPU {first}: the driver knows {count}")
    handles = [nvml.nvmlDeviceGetHandleByIndex(index) for index in range(count)]
    kinds = {_text(nvml.nvmlDeviceGetName(handle)) for handle in handles}
    if len(kinds) > 1 and os.environ.get("CUDA_DEVICE_ORDER") != "PCI_BUS_ID":
        raise TargetError(
            f"this machine has GPUs of several kinds ({', '.join(sorted(kinds))}), and CUDA's "
            "numbers of them are not those of the driver",
            hint="set CUDA_DEVICE_ORDER=PCI_BUS_ID, or CUDA_VISIBLE_DEVICES to a UUID",
        )
    return handles[int(first)]


def _text(name: str | bytes) -> str:
    return name.decode() if isinstance(name, bytes) else name  # older versions give bytes


def _status(device: Literal["cpu", "cuda"]) -> EnergyMeterStatus:
    try:
        meter = energy_meter_for(device)
    except HwnasError as error:
        return EnergyMeterStatus(
            device=device, name="", usable=False, reason=error.message, fix=error.hint
        )
    return EnergyMeterStatus(device=device, name=meter.name, usable=True)
