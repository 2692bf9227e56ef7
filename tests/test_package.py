"""The packages as a whole: what importing costs, what depends on what, what a wheel holds."""

from __future__ import annotations

import importlib
import pkgutil
import statistics
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = {
    "hwnas": ROOT / "hwnas",
    "hwnas_profilers": ROOT / "profilers" / "hwnas_profilers",
    "hwnas_export": ROOT / "export" / "hwnas_export",
}
HEAVY = {"torch", "onnx", "onnxruntime", "tensorrt", "click", "numpy", "rich", "msgspec"}


def modules() -> list[str]:
    found = []
    for package, folder in SOURCES.items():
        found.append(package)
        found += [each.name for each in pkgutil.walk_packages([str(folder)], f"{package}.")]
    return found


def fresh(code: str) -> str:
    """Run code in a fresh interpreter; return what it prints."""
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    return result.stdout


@pytest.mark.parametrize("package", ["hwnas", "hwnas.api", "hwnas_profilers", "hwnas_export"])
def test_importing_loads_nothing_heavy(package: str) -> None:
    loaded = set(fresh(f"import sys, {package}; print(*sys.modules)").split())
    assert not HEAVY & loaded


@pytest.mark.serial
def test_importing_is_quick() -> None:
    """Promised: under 50 ms on an idle machine. This has room for a busy one."""
    code = "import time; t = time.perf_counter(); import hwnas; print(time.perf_counter() - t)"
    seconds = [float(fresh(code)) for _ in range(7)]
    assert statistics.median(seconds) < 0.25, seconds


@pytest.mark.parametrize("name", modules())
def test_every_module_imports(name: str) -> None:
    assert importlib.import_module(name).__doc__, "a module says what it is"


def test_every_folder_with_code_is_a_package() -> None:
    for folder in SOURCES.values():
        for file in folder.rglob("*.py"):
            assert (file.parent / "__init__.py").is_file(), file.parent


def test_imports_point_down_the_layers() -> None:
    result = subprocess.run(
        [str(Path(sys.executable).with_name("lint-imports")), "--no-cache"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout


def test_the_wheel_holds_the_three_packages_and_nothing_else(tmp_path: Path) -> None:
    wheel = pytest.importorskip("hatchling.builders.wheel", reason="hatchling builds the wheel")
    built = next(
        wheel.WheelBuilder(str(ROOT)).build(directory=str(tmp_path), versions=["standard"])
    )
    with zipfile.ZipFile(built) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    expected = {
        f"{package}/{file.relative_to(folder).as_posix()}"
        for package, folder in SOURCES.items()
        for file in folder.rglob("*")
        if file.is_file() and "__pycache__" not in file.parts
    }
    assert names == expected
    assert {f"{package}/py.typed" for package in SOURCES} <= names
