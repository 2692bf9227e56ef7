"""The cache of engines, with engines that TensorRT for RTX really builds, ahead of time."""

from __future__ import annotations

import json
import multiprocessing
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest
from onnx import TensorProto, helper

from hwnas.core.artifacts import sha256_of
from hwnas.core.errors import ExportError, InputFileError, TargetError
from hwnas_export import engine_cache
from hwnas_export.engine_cache import cached_engine, engine_device
from hwnas_export.tensorrt_engine import DEFAULT_SETTINGS, EngineSettings

if TYPE_CHECKING:
    from collections.abc import Callable

SETTINGS = EngineSettings(compute_capabilities=("8.6",))


def model(channels: int = 3) -> bytes:
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, channels, 4, 4])
        for name in ("images", "logits")
    ]
    graph = helper.make_graph(
        [helper.make_node("Relu", ["images"], ["logits"])], "relu", ends[:1], ends[1:]
    )
    opset = [helper.make_opsetid("", 20)]
    whole = helper.make_model(graph, opset_imports=opset, ir_version=10)
    return bytes(whole.SerializeToString())


class Builds:
    """Stands in for TensorRT: every build gives other bytes, as TensorRT's do."""

    def __init__(self) -> None:
        self.count = 0
        self.kind, self.version = "tensorrt_rtx", "tensorrt_rtx 1.7.1.116"
        self.device: SimpleNamespace | None = None

    def engine_from_onnx(self, model: bytes, **_: object) -> bytes:
        self.count += 1
        return b"plan %d of " % self.count + model

    def driver(self) -> SimpleNamespace:
        if self.device is None:
            raise TargetError("there is no NVIDIA driver here")
        return SimpleNamespace(device=lambda: self.device)


@pytest.fixture
def builds(monkeypatch: pytest.MonkeyPatch) -> Builds:
    fake = Builds()
    monkeypatch.setattr(engine_cache, "engine_from_onnx", fake.engine_from_onnx)
    monkeypatch.setattr(engine_cache, "tensorrt_version", lambda: fake.version)
    monkeypatch.setattr(engine_cache, "trt_module", lambda: SimpleNamespace(__name__=fake.kind))
    monkeypatch.setattr(engine_cache, "cuda_driver", fake.driver)
    return fake


def gpu(name: str = "RTX A6000", minor: int = 6, cuda: str = "13.0") -> SimpleNamespace:
    return SimpleNamespace(name=name, compute_capability=(8, minor), driver_cuda=cuda)


def test_the_same_engine_is_built_once(builds: Builds, tmp_path: Path) -> None:
    folder = tmp_path / "made" / "engines"
    first = cached_engine(model(), SETTINGS, folder=folder)
    assert cached_engine(model(), SETTINGS, folder=folder) == first
    assert builds.count == 1
    assert sorted(file.suffix for file in folder.iterdir()) == [".json", ".lock", ".plan"]
    (sidecar,) = folder.glob("*.json")
    described = json.loads(sidecar.read_bytes())
    assert described["plan_sha256"] == sha256_of(first)
    assert described["model_sha256"] == sha256_of(model())
    assert described["settings"]["compute_capabilities"] == ["8.6"]
    assert sha256_of(first) not in sidecar.name


def other_model(builds: Builds) -> tuple[bytes, EngineSettings]:
    return model(4), SETTINGS


def other_batches(builds: Builds) -> tuple[bytes, EngineSettings]:
    return model(), EngineSettings(compute_capabilities=("8.6",), batches=(1, 2, 3))


def other_level(builds: Builds) -> tuple[bytes, EngineSettings]:
    return model(), EngineSettings(compute_capabilities=("8.6",), optimization_level=5)


def other_workspace(builds: Builds) -> tuple[bytes, EngineSettings]:
    return model(), EngineSettings(compute_capabilities=("8.6",), workspace_mib=64)


def other_gpu(builds: Builds) -> tuple[bytes, EngineSettings]:
    return model(), EngineSettings(compute_capabilities=("8.9",))


def other_version(builds: Builds) -> tuple[bytes, EngineSettings]:
    builds.version = "tensorrt_rtx 1.8.0.1"
    return model(), SETTINGS


@pytest.mark.parametrize(
    "other", [other_model, other_batches, other_level, other_workspace, other_gpu, other_version]
)
def test_whatever_an_engine_follows_from_makes_another(
    builds: Builds, tmp_path: Path, other: Callable[[Builds], tuple[bytes, EngineSettings]]
) -> None:
    first = cached_engine(model(), SETTINGS, folder=tmp_path)
    changed, settings = other(builds)
    assert cached_engine(changed, settings, folder=tmp_path) != first
    assert builds.count == 2
    assert len([*tmp_path.glob("*.plan")]) == 2  # and the first is still there


@pytest.mark.parametrize(
    "other", [gpu("RTX 3090"), gpu(minor=9), gpu(cuda="13.1")], ids=["name", "capability", "driver"]
)
def test_an_engine_for_the_gpu_at_hand_is_for_no_other(
    builds: Builds, tmp_path: Path, other: SimpleNamespace
) -> None:
    builds.kind, builds.version = "tensorrt", "tensorrt 11.4.0.106"
    builds.device = gpu()
    assert engine_device(DEFAULT_SETTINGS) == (
        "RTX A6000, compute capability 8.6, driver for CUDA 13.0"
    )
    cached_engine(model(), DEFAULT_SETTINGS, folder=tmp_path)
    cached_engine(model(), DEFAULT_SETTINGS, folder=tmp_path)
    assert builds.count == 1
    builds.device = other
    cached_engine(model(), DEFAULT_SETTINGS, folder=tmp_path)
    assert builds.count == 2


def test_an_engine_for_named_gpus_is_the_same_on_every_machine(
    builds: Builds, tmp_path: Path
) -> None:
    both = EngineSettings(compute_capabilities=("8.6", "8.9"))
    assert engine_device(both) == "compute capability 8.6, 8.9"
    builds.device = gpu()
    assert engine_device(both) == "compute capability 8.6, 8.9"
    builds.device = None
    assert "by default" in engine_device(DEFAULT_SETTINGS)
    builds.kind = "tensorrt"
    with pytest.raises(TargetError, match="no NVIDIA driver"):
        cached_engine(model(), DEFAULT_SETTINGS, folder=tmp_path)


def flipped(plan: Path, sidecar: Path) -> None:
    content = bytearray(plan.read_bytes())
    content[len(content) // 2] ^= 1
    plan.write_bytes(content)


def cut(plan: Path, sidecar: Path) -> None:
    plan.write_bytes(plan.read_bytes()[:-1])


def swapped(plan: Path, sidecar: Path) -> None:
    """Another engine, whole and with its own hash, under this one's name."""
    plan.write_bytes(b"another")
    facts = json.loads(sidecar.read_bytes())
    facts |= {"plan_sha256": sha256_of(b"another"), "model_sha256": sha256_of(b"its model")}
    sidecar.write_text(json.dumps(facts))


def gone(plan: Path, sidecar: Path) -> None:
    plan.unlink()


def junk(plan: Path, sidecar: Path) -> None:
    sidecar.write_bytes(b"\xff{")


def other_schema(plan: Path, sidecar: Path) -> None:
    facts = json.loads(sidecar.read_bytes())
    sidecar.write_text(json.dumps(facts | {"schema": 2}))


def unknown_key(plan: Path, sidecar: Path) -> None:
    facts = json.loads(sidecar.read_bytes())
    sidecar.write_text(json.dumps(facts | {"speed": "fast"}))


@pytest.mark.parametrize(
    "damage",
    [flipped, cut, swapped, gone, junk, other_schema, unknown_key],
    ids=lambda f: f.__name__,
)
def test_a_damaged_entry_is_built_anew_and_said(
    builds: Builds,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    damage: Callable[[Path, Path], None],
) -> None:
    cached_engine(model(), SETTINGS, folder=tmp_path)
    (plan,), (sidecar,) = tmp_path.glob("*.plan"), tmp_path.glob("*.json")
    damage(plan, sidecar)
    again = cached_engine(model(), SETTINGS, folder=tmp_path)
    assert again.startswith(b"plan 2 of ")
    assert "built anew" in caplog.text
    assert str(tmp_path) in caplog.text
    caplog.clear()
    assert cached_engine(model(), SETTINGS, folder=tmp_path) == again
    assert caplog.text == ""


def test_a_build_that_fails_leaves_no_entry(
    builds: Builds, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(model: bytes, **_: object) -> bytes:
        raise ExportError("TensorRT cannot build the model")

    with monkeypatch.context() as patch:
        patch.setattr(engine_cache, "engine_from_onnx", refused)
        with pytest.raises(ExportError, match="cannot build"):
            cached_engine(model(), SETTINGS, folder=tmp_path)
    assert [file.suffix for file in tmp_path.iterdir()] == [".lock"]
    assert cached_engine(model(), SETTINGS, folder=tmp_path).startswith(b"plan 1 of ")


@pytest.mark.usefixtures("builds")
def test_a_folder_that_cannot_be_one_says_so(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(InputFileError, match="cannot be written") as caught:
        cached_engine(model(), SETTINGS, folder=file / "engines")
    assert caught.value.hint


def _build_slowly(folder: str, built: str) -> None:
    import time

    def slowly(model: bytes, **_: object) -> bytes:
        with Path(built).open("a") as file:
            file.write("built\n")
        time.sleep(0.3)
        return b"plan"

    vars(engine_cache).update(
        engine_from_onnx=slowly,
        tensorrt_version=lambda: "tensorrt_rtx 1.7.1.116",
        trt_module=lambda: SimpleNamespace(__name__="tensorrt_rtx"),
    )
    assert cached_engine(model(), SETTINGS, folder=Path(folder)) == b"plan"


def test_processes_that_want_the_same_engine_wait_for_one(tmp_path: Path) -> None:
    spawn = multiprocessing.get_context("spawn")
    arguments = (str(tmp_path / "engines"), str(tmp_path / "built"))
    processes = [spawn.Process(target=_build_slowly, args=arguments) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    assert (tmp_path / "built").read_text() == "built\n"


@pytest.mark.tensorrt
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_real_engine_is_kept_although_its_bytes_differ(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("tensorrt_rtx", reason="needs TensorRT for RTX, which builds without a GPU")
    first = cached_engine(model(), SETTINGS, folder=tmp_path / "one")
    assert cached_engine(model(), SETTINGS, folder=tmp_path / "one") == first
    assert len(cached_engine(model(), SETTINGS, folder=tmp_path / "two")) > 1_000
    names = [{file.name for file in (tmp_path / each).iterdir()} for each in ("one", "two")]
    assert names[0] == names[1], "the key is the engine's own, whatever it came out as"
    assert caplog.text == ""
