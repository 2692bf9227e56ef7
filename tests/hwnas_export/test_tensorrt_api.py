"""Every name of TensorRT that hwnas uses is listed, and the bindings that are here have it."""

from __future__ import annotations

import ast
import functools
import importlib.util
import json
import re
import sys
import types
from pathlib import Path

import pytest

import hwnas_export
from hwnas.core.errors import MissingDependencyError, TargetError
from hwnas_export.tensorrt_api import (
    TRT_NAMES,
    TRT_OPTIONAL_NAMES,
    is_rtx,
    tensorrt_version,
    trt_module,
)

SOURCES = sorted(Path(hwnas_export.__file__).parent.glob("tensorrt_*.py"))

OBJECTS = {
    "trt": "",
    "module": "",
    "builder": "Builder",
    "network": "INetworkDefinition",
    "tensor": "ITensor",
    "parser": "OnnxParser",
    "finding": "ParserError",
    "config": "IBuilderConfig",
    "profile": "IOptimizationProfile",
    "cache": "ITimingCache",
    "runtime": "Runtime",
    "engine": "ICudaEngine",
    "context": "IExecutionContext",
}
"""What our variables hold: the naming is part of the contract, or a use would go unseen."""

PYTHONS_OWN = {"__name__", "__init__"}
"""Of every module and class."""

NAMES_OF_BINDINGS = ("tensorrt", "tensorrt_bindings", "tensorrt_rtx", "tensorrt_rtx_bindings")


def used_names(tree: ast.AST) -> set[str]:
    """Return the dotted names that a source takes from TensorRT, with the class in front."""
    return {name for node in ast.walk(tree) if (name := used_name(node))}


def used_name(node: ast.AST) -> str:
    match node:
        case ast.Call(func=ast.Name(id="getattr"), args=[owner, ast.Constant(value=str(last)), *_]):
            chain = chain_of(owner)
        case ast.Attribute(value=owner, attr=last):
            chain = chain_of(owner)
        case _:
            return ""
    chain = [part.removeprefix("_") for part in chain if part != "self"]
    if not chain or chain[0] not in OBJECTS:
        return ""
    return ".".join(part for part in (OBJECTS[chain[0]], *chain[1:], last) if part)


def chain_of(node: ast.AST) -> list[str]:
    match node:
        case ast.Name(id=name):
            return [name]
        case ast.Attribute(value=owner, attr=last):
            return [*chain_of(owner), last]
    return [""]


def leaves(names: set[str]) -> set[str]:
    """Drop what only leads to a longer name: `BuilderFlag` where there is `BuilderFlag.TF32`."""
    return {name for name in names if not any(other.startswith(f"{name}.") for other in names)}


def has(module: types.ModuleType, name: str) -> bool:
    owner: object = module
    for part in name.split("."):
        if not hasattr(owner, part):
            return False
        owner = getattr(owner, part)
    return True


def test_the_list_is_what_the_code_uses() -> None:
    assert len(SOURCES) >= 3
    used: set[str] = set()
    for path in SOURCES:
        used |= used_names(ast.parse(path.read_text()))
    used = {name for name in used if name.rpartition(".")[2] not in PYTHONS_OWN}
    listed = set(TRT_NAMES) | set(TRT_OPTIONAL_NAMES)
    assert leaves(used) - listed == set()
    assert leaves(listed) - used == set()
    assert list(TRT_NAMES) == sorted(TRT_NAMES)
    assert not set(TRT_NAMES) & set(TRT_OPTIONAL_NAMES)


def test_the_scan_sees_every_way_of_use() -> None:
    source = """
flag = trt.BuilderFlag.FP16
self._context.set_input_shape("images", shape)
limit = getattr(config, "max_aux_streams", None)
builder.create_network(0)
other.thing
"""
    assert leaves(used_names(ast.parse(source))) == {
        "BuilderFlag.FP16",
        "IExecutionContext.set_input_shape",
        "IBuilderConfig.max_aux_streams",
        "Builder.create_network",
    }


@pytest.mark.tensorrt
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # some of what they hold is deprecated
def test_the_bindings_have_every_name() -> None:
    found = [name for name in NAMES_OF_BINDINGS if importlib.util.find_spec(name)]
    if not found:
        pytest.skip("no bindings of TensorRT are installed: `make extras` installs some")
    for name in found:
        module = importlib.import_module(name)
        wanted = (*TRT_NAMES, *TRT_OPTIONAL_NAMES) if "rtx" in name else TRT_NAMES
        assert [each for each in wanted if not has(module, each)] == []
        assert not has(module, "Builder.create_nothing")


RECORDS: dict[str, dict[str, str]] = json.loads(
    Path(__file__).with_name("tensorrt_names.json").read_bytes()
)
"""Members by class of each version: taken from its bindings by record_tensorrt_names.py."""


def recorded(members: dict[str, str], name: str) -> bool:
    owner, _, last = name.rpartition(".")
    return last in members.get(owner, "").split() if owner else name in members


def test_the_versions_that_boards_and_packages_have_are_recorded() -> None:
    kinds = [re.sub(r"(\d+)\.(\d+)\..*", r"\1.\2", record) for record in sorted(RECORDS)]
    assert kinds == ["tensorrt 10.16", "tensorrt 10.3", "tensorrt 11.4", "tensorrt_rtx 1.7"]


@pytest.mark.parametrize("version", RECORDS)
def test_every_version_has_every_name(version: str) -> None:
    members = RECORDS[version]
    wanted = (*TRT_NAMES, *TRT_OPTIONAL_NAMES) if "rtx" in version else TRT_NAMES
    missing = [name for name in wanted if not recorded(members, name)]
    assert [name for name in missing if name != "__version__"] == []
    # The record is of what there is, and not of what we would like there to be.
    assert not recorded(members, "Builder.create_nothing")
    assert recorded(members, "BuilderFlag.FP16") == (
        "tensorrt 11" not in version and "rtx" not in version
    )


@pytest.mark.tensorrt
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_what_is_recorded_is_what_is_installed() -> None:
    pytest.importorskip("tensorrt_rtx", reason="needs bindings that can be imported here")
    module = importlib.import_module("tensorrt_rtx")
    members = RECORDS.get(f"tensorrt_rtx {module.__version__}")
    if members is None:
        pytest.skip(f"tensorrt_rtx {module.__version__} has no record")
    for owner, names in members.items():
        found = functools.reduce(getattr, owner.split("."), module)
        assert names.split() == [each for each in dir(found) if not each.startswith("_")]


def modules(monkeypatch: pytest.MonkeyPatch, **versions: str | None) -> None:
    """Let only these modules of TensorRT be there, in these versions."""
    for name in NAMES_OF_BINDINGS:
        monkeypatch.setitem(sys.modules, name, None)  # as if not installed
    for name, version in versions.items():
        module = types.ModuleType(name)
        module.__dict__["__version__"] = version
        monkeypatch.setitem(sys.modules, name, module)


@pytest.mark.parametrize("version", ["10.3.0", "10.16.1.11", "11.4.0.106"])
def test_the_full_tensorrt_comes_first(monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    modules(monkeypatch, tensorrt=version, tensorrt_rtx="1.7.1.116")
    assert not is_rtx(trt_module())
    assert tensorrt_version() == f"tensorrt {version}"


@pytest.mark.parametrize("name", ["tensorrt_rtx", "tensorrt_rtx_bindings"])
def test_rtx_takes_its_place(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    modules(monkeypatch, **{name: "1.7.1.116"})
    assert is_rtx(trt_module())
    assert tensorrt_version() == "tensorrt_rtx 1.7.1.116"


def test_none_installed_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    modules(monkeypatch)
    with pytest.raises(MissingDependencyError, match=r'pip install "hwnas\[tensorrt\]"'):
        trt_module()


@pytest.mark.parametrize(
    ("name", "version"),
    [
        ("tensorrt", "8.6.1"),
        ("tensorrt", "10.2.0"),
        ("tensorrt", "12.0.1"),
        ("tensorrt_rtx", "1.3.0"),
    ],
)
def test_a_version_that_is_not_served_is_refused(
    monkeypatch: pytest.MonkeyPatch, name: str, version: str
) -> None:
    modules(monkeypatch, **{name: version})
    with pytest.raises(MissingDependencyError, match=rf"{name} {version} is installed, but"):
        trt_module()


def test_a_module_that_cannot_load_its_libraries_says_so(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    modules(monkeypatch)
    monkeypatch.delitem(sys.modules, "tensorrt")
    monkeypatch.syspath_prepend(str(tmp_path))
    broken = tmp_path / "tensorrt.py"
    broken.write_text("raise ImportError('libnvinfer.so.10: cannot open shared object file')\n")
    with pytest.raises(TargetError, match=r"tensorrt is installed, but cannot be loaded: libnv"):
        trt_module()
    broken.write_text("import tensorrt_libs_of_another_kind\n")
    importlib.invalidate_caches()
    with pytest.raises(TargetError, match="tensorrt_libs_of_another_kind") as caught:
        trt_module()
    assert "pip install --force-reinstall tensorrt" in caught.value.hint
