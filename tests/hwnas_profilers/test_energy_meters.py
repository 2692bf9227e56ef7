from __future__ import annotations

import importlib
import importlib.util
import itertools
import sys
from pathlib import Path
from types import ModuleType

import pytest

from hwnas.core.errors import MissingDependencyError, TargetError
from hwnas_profilers import energy_meters
from hwnas_profilers.energy_meters import (
    NvmlMeter,
    RaplMeter,
    energy_meter_for,
    energy_meter_status,
)

RANGE_UJ = 262_143_328_850


def add_zone(root: Path, folder: str, name: str, energy_uj: int, range_uj: int = RANGE_UJ) -> Path:
    zone = root / folder
    zone.mkdir(parents=True)
    (zone / "name").write_text(f"{name}\n")
    (zone / "energy_uj").write_text(f"{energy_uj}\n")
    (zone / "max_energy_range_uj").write_text(f"{range_uj}\n")
    return zone / "energy_uj"


def test_packages_are_summed_and_their_parts_are_not_counted_again(tmp_path: Path) -> None:
    first = add_zone(tmp_path, "intel-rapl:0", "package-0", 100)
    second = add_zone(tmp_path, "intel-rapl:1", "package-1", 1_000)
    others = [
        add_zone(tmp_path, "intel-rapl:0:0", "core", 7),
        add_zone(tmp_path, "intel-rapl:0:1", "dram", 7),
        add_zone(tmp_path, "intel-rapl:2", "psys", 7),  # packages, and the rest of the board
        add_zone(tmp_path, "intel-rapl-mmio:0", "package-0", 100),  # the same counter once more
    ]
    (tmp_path / "intel-rapl" / "enabled").mkdir(parents=True)
    meter = RaplMeter(tmp_path)
    assert meter.name == "RAPL package-0 + package-1"
    begin = meter.read_uj()
    first.write_text("150\n")
    second.write_text("1200\n")
    for other in others:
        other.write_text("999999\n")
    assert meter.read_uj() - begin == 50 + 200


def test_a_package_that_only_the_memory_map_shows_is_read_there(tmp_path: Path) -> None:
    counter = add_zone(tmp_path, "intel-rapl-mmio:0", "package-0", 5)
    meter = RaplMeter(tmp_path)
    begin = meter.read_uj()
    counter.write_text("25")
    assert meter.read_uj() - begin == 20


def test_a_counter_that_wraps_around_goes_on(tmp_path: Path) -> None:
    counter = add_zone(tmp_path, "intel-rapl:0", "package-0", RANGE_UJ - 300)
    still = add_zone(tmp_path, "intel-rapl:1", "package-1", 40)
    meter = RaplMeter(tmp_path)
    readings = [meter.read_uj()]
    for raw in (RANGE_UJ - 100, 200, 900, RANGE_UJ - 1, 1):
        counter.write_text(str(raw))
        readings.append(meter.read_uj())
    steps = [after - before for before, after in itertools.pairwise(readings)]
    assert steps == [200, 300, 700, RANGE_UJ - 901, 2]
    assert still.read_text() == "40\n"


def test_a_counter_that_goes_back_beyond_its_range_is_no_meter(tmp_path: Path) -> None:
    counter = add_zone(tmp_path, "intel-rapl:0", "package-0", 5_000, range_uj=1_000)
    meter = RaplMeter(tmp_path)
    counter.write_text("10")
    with pytest.raises(TargetError, match="went back from 5000 to 10"):
        meter.read_uj()


def test_a_hidden_counter_is_refused_with_the_command_that_shows_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counter = add_zone(tmp_path, "intel-rapl:0", "package-0", 1)
    read = Path.read_text

    def guarded(path: Path, encoding: str | None = None) -> str:
        if path == counter:  # a mode of 0400 would not stop a test that root runs
            raise PermissionError(13, "Permission denied", str(path))
        return read(path, encoding=encoding)

    monkeypatch.setattr(Path, "read_text", guarded)
    with pytest.raises(TargetError, match="by root alone") as refusal:
        RaplMeter(tmp_path)
    assert f"sudo chmod a+r {tmp_path}/*/energy_uj" in refusal.value.hint


@pytest.mark.parametrize("content", ["", "-5", "none"])
def test_a_counter_that_holds_no_number_is_refused(tmp_path: Path, content: str) -> None:
    add_zone(tmp_path, "intel-rapl:0", "package-0", 1).write_text(content)
    with pytest.raises(TargetError, match="not a number of microjoules"):
        RaplMeter(tmp_path)


def test_without_a_counter_the_meter_is_refused(tmp_path: Path) -> None:
    for root in (tmp_path, tmp_path / "missing"):
        with pytest.raises(TargetError, match="no RAPL counter") as refusal:
            RaplMeter(root)
        assert "modprobe" in refusal.value.hint


class FakeNvml(ModuleType):
    """The part of pynvml that is used, over GPUs that are given by name."""

    class NVMLError(Exception):
        pass

    class NVMLError_LibraryNotFound(NVMLError):
        pass

    class NVMLError_NotSupported(NVMLError):
        pass

    def __init__(self, *names: str | bytes) -> None:
        super().__init__("pynvml")
        self.names = names
        self.millijoules = [1_000 * (index + 1) for index in range(len(names))]
        self.failure: type[FakeNvml.NVMLError] | None = None

    def nvmlInit(self) -> None:
        if self.failure is self.NVMLError_LibraryNotFound:
            raise self.failure

    def nvmlDeviceGetCount(self) -> int:
        return len(self.names)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:
        return index

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> int:
        return int(uuid.removeprefix("GPU-"))

    def nvmlDeviceGetName(self, handle: int) -> str | bytes:
        return self.names[handle]

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: int) -> int:
        if self.failure is not None:
            raise self.failure
        return self.millijoules[handle]


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> FakeNvml:
    nvml = FakeNvml("GPU A", b"GPU A")
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.delenv("CUDA_DEVICE_ORDER", raising=False)
    return nvml


def test_a_gpu_s_millijoules_become_microjoules(two_gpus: FakeNvml) -> None:
    meter = energy_meter_for("cuda")
    assert meter.name == "NVML GPU A"
    begin = meter.read_uj()
    two_gpus.millijoules[0] += 3
    assert meter.read_uj() - begin == 3_000 == 3 * meter.resolution_uj


@pytest.mark.parametrize("visible", ["1", "1,0", "GPU-1"])
def test_the_gpu_that_cuda_shows_is_metered(
    two_gpus: FakeNvml, monkeypatch: pytest.MonkeyPatch, visible: str
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert NvmlMeter().read_uj() == two_gpus.millijoules[1] * 1_000


@pytest.mark.parametrize("visible", ["", "-1", "MIG-1", "2"])
def test_what_is_no_whole_gpu_is_not_metered(
    two_gpus: FakeNvml, monkeypatch: pytest.MonkeyPatch, visible: str
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    with pytest.raises(TargetError, match=r"whole GPUs|no GPU 2"):
        NvmlMeter()


def test_of_gpus_of_two_kinds_the_right_one_must_be_named(
    two_gpus: FakeNvml, monkeypatch: pytest.MonkeyPatch
) -> None:
    two_gpus.names = ("GPU A", "GPU B")
    with pytest.raises(TargetError, match=r"several kinds \(GPU A, GPU B\)"):
        NvmlMeter()
    monkeypatch.setenv("CUDA_DEVICE_ORDER", "PCI_BUS_ID")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    assert NvmlMeter().name == "NVML GPU B"


@pytest.mark.parametrize(
    ("failure", "reason"),
    [
        (FakeNvml.NVMLError_LibraryNotFound, "no NVIDIA driver"),
        (FakeNvml.NVMLError_NotSupported, "keeps no counter"),
        (FakeNvml.NVMLError, "does not tell"),
    ],
)
def test_a_driver_that_refuses_is_a_reason_and_no_zero(
    two_gpus: FakeNvml, failure: type[FakeNvml.NVMLError], reason: str
) -> None:
    two_gpus.failure = failure
    with pytest.raises(TargetError, match=reason):
        NvmlMeter()


def test_a_driver_that_was_loaded_anew_is_noticed(two_gpus: FakeNvml) -> None:
    meter = NvmlMeter()
    two_gpus.millijoules[0] = 0
    with pytest.raises(TargetError, match="went back"):
        meter.read_uj()


def test_without_the_package_the_line_that_installs_it_is_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    with pytest.raises(MissingDependencyError) as refusal:
        energy_meter_for("cuda")
    assert refusal.value.hint == "pip install nvidia-ml-py"


def test_doctor_is_told_what_can_be_metered_and_why_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, two_gpus: FakeNvml
) -> None:
    monkeypatch.setattr(energy_meters, "POWERCAP", tmp_path)
    two_gpus.failure = FakeNvml.NVMLError_NotSupported
    cpu, cuda = energy_meter_status()
    assert (cpu.device, cpu.usable, cuda.device, cuda.usable) == ("cpu", False, "cuda", False)
    assert "no RAPL counter" in cpu.reason
    assert "Volta" in cuda.fix
    two_gpus.failure = None
    add_zone(tmp_path, "intel-rapl:0", "package-0", 1)
    assert [(status.name, status.usable) for status in energy_meter_status()] == [
        ("RAPL package-0", True),
        ("NVML GPU A", True),
    ]


@pytest.mark.skipif(
    importlib.util.find_spec("pynvml") is None, reason="nvidia-ml-py is not installed"
)
def test_nvidia_s_package_has_every_name_that_is_used() -> None:
    pynvml = importlib.import_module("pynvml")
    used = [name for name in vars(FakeNvml) if name.startswith(("nvml", "NVML"))]
    assert len(used) == 9
    assert [name for name in used if not hasattr(pynvml, name)] == []
    assert issubclass(pynvml.NVMLError_NotSupported, pynvml.NVMLError)
