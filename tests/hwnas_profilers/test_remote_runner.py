"""A network on a board that is fed from here: all but ssh's part, which `test_remote_ssh` has."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from hwnas.core.errors import DataError, ExportError, TargetError
from hwnas_export.onnx_export import onnx_from_module
from hwnas_export.onnxruntime_runner import OnnxRuntimeRunner
from hwnas_profilers import remote_runner
from hwnas_profilers.remote_packing import packed
from hwnas_profilers.remote_runner import RemoteRunner
from hwnas_profilers.targets import parse_target
from hwnas_profilers.timing import RoundLog, TimingSettings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path
    from typing import Any

    from numpy.typing import NDArray

TARGET = parse_target("ssh://pi@board:2222/onnxruntime-cpu")
SETTINGS = TimingSettings(
    relative_width=0.5,
    min_samples=12,
    max_samples=16,
    samples_per_round=4,
    warmup_calls=1,
    min_sample_us=20,
    max_disturbed=0,  # every round that comes back is kept
)


def exported() -> bytes:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 5))
    model = onnx_from_module(network.eval(), (1, 3, 8, 8), dynamic_batch=True)
    return bytes(model.SerializeToString())


@pytest.fixture(scope="module")
def model() -> bytes:
    return exported()


@pytest.fixture(scope="module")
def images() -> NDArray[np.float32]:
    return np.random.default_rng(0).random((7, 3, 8, 8), dtype=np.float32)


def expected(model: bytes, images: NDArray[np.float32]) -> NDArray[np.float32]:
    with OnnxRuntimeRunner(model) as runner:
        return runner.infer(images)


class Listener:
    """Progress that keeps what is said, and what each task was told."""

    def __init__(self, act: Callable[[str, float], None] = lambda name, step: None) -> None:
        self.said: list[str] = []
        self.done: dict[str, float] = {}
        self.totals: dict[str, float] = {}
        self.notes: list[str] = []
        self._act, self._name = act, ""

    @contextmanager
    def task(self, name: str, total: float, *, done: float = 0) -> Iterator[Listener]:
        self.totals[name], self.done[name], self._name = total, 0, name
        yield self

    def advance(self, steps: float = 1, note: str = "") -> None:
        self.done[self._name] += steps
        self.notes += [note] if note else []
        self._act(self._name, self.done[self._name])

    def say(self, message: str) -> None:
        self.said.append(message)


def runner(model: bytes, *, pauses_s: Sequence[float] = (0.0, 0.0), **how: Any) -> RemoteRunner:
    return RemoteRunner(TARGET, model, pauses_s=pauses_s, **how)


def kill_agent(runner: RemoteRunner) -> None:
    wire = runner._board._wire
    assert wire is not None
    wire._process.kill()
    wire._process.wait()


@pytest.mark.usefixtures("shell_for_ssh")
def test_a_board_computes_what_this_machine_does(model: bytes, images: NDArray[np.float32]) -> None:
    progress = Listener()
    with runner(model, progress=progress) as board:
        assert board.name == "ssh://pi@board:2222/onnxruntime-cpu"
        assert board.input_shape == (None, 3, 8, 8)
        assert np.array_equal(board.infer(images), expected(model, images))
        assert np.array_equal(board.infer(images[:1]), expected(model, images[:1]))
        assert board.sampler_on(images)(3) > 0
        assert board.call_on(images)() is not None
        log = RoundLog()
        one, many = board.time([1, 64], SETTINGS, log=log)
        assert min(one.n, many.n) >= SETTINGS.min_samples
        assert 0 < one.median_us < many.median_us
        calls_us = board.time_calls(64, 50)
        assert calls_us.shape == (50,)
        assert calls_us.min() > one.min_us
        assert len(log.states) == 2  # the board's own
        assert set(board.packages) == {"numpy", "onnxruntime"}
        sent, received = board.traffic_bytes
        with pytest.raises(DataError, match="3x8x8"):
            board.infer(images[:, :, 1:])
    assert sent > len(model) + images.nbytes
    assert 0 < received < sent
    assert board.traffic_bytes == (sent, received)  # known after the end as well
    assert progress.done["sending (KiB)"] == pytest.approx(len(model) / 1024, abs=0.1)
    assert progress.notes == ["compiling there"]


@pytest.mark.usefixtures("shell_for_ssh")
def test_a_fixed_batch_is_the_models_own(model: bytes, images: NDArray[np.float32]) -> None:
    proto = onnx.load_model_from_string(model)
    for each in (*proto.graph.input, *proto.graph.output):
        each.type.tensor_type.shape.dim[0].dim_value = 2
    fixed = proto.SerializeToString()
    with runner(fixed) as board:
        assert board.input_shape == (2, 3, 8, 8)
        assert np.array_equal(board.infer(images[:2]), expected(fixed, images[:2]))


@pytest.mark.usefixtures("shell_for_ssh")
def test_large_requests_are_sent_in_parts(
    model: bytes, images: NDArray[np.float32], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []

    def counted(part: NDArray[np.float32]) -> Any:
        asked.append(len(part))
        return packed(part)

    monkeypatch.setattr(remote_runner, "packed", counted)
    with runner(model) as board:
        monkeypatch.setattr(remote_runner, "_PART_BYTES", 3 * images[0].nbytes)
        given = board.infer(images)
    with runner(model, batches=(1, 1, 4)) as board:
        monkeypatch.setattr(remote_runner, "_PART_BYTES", 2**20)
        board.infer(images)
    assert np.array_equal(given, expected(model, images))
    assert asked == [3, 3, 1, 4, 3]


@pytest.mark.parametrize("when", ["sending", "between", "within", "timing", "calling"])
@pytest.mark.usefixtures("shell_for_ssh")
def test_a_cut_is_gone_on_from(
    when: str, model: bytes, images: NDArray[np.float32], monkeypatch: pytest.MonkeyPatch
) -> None:
    killed: list[str] = []

    def kill(name: str, done: float) -> None:
        if name.startswith("sending") and when == "sending" and not killed:
            killed.append(name)
            kill_agent(board)

    progress = Listener(kill)
    board = runner(model, progress=progress)
    with board:
        asked: list[int] = []
        monkeypatch.setattr(remote_runner, "_PART_BYTES", 3 * images[0].nbytes)
        infer_part = board._infer_part

        def infer(part: NDArray[np.float32]) -> NDArray[np.float32]:
            asked.append(len(part))
            if when == "within" and len(asked) == 2:
                kill_agent(board)
            return infer_part(part)

        monkeypatch.setattr(board, "_infer_part", infer)
        sample = board.sampler_on(images)
        if when in ("between", "timing", "calling"):
            kill_agent(board)
        if when == "calling":
            assert sample(2) > 0
        if when == "timing":
            for latency in board.time([8, 2], SETTINGS, log=RoundLog()):
                assert latency.n >= SETTINGS.min_samples
            kill_agent(board)
            assert len(board.time_calls(8, 5)) == 5
        assert np.array_equal(board.infer(images), expected(model, images))
        assert asked == [3, 3, 1]  # what was answered is not asked again
        cuts = 2 if when == "timing" else 1
        assert board.facts()["connections"] == str(1 + cuts)
    assert len(progress.said) == cuts
    assert "connecting again in 0 s" in progress.said[0]
    assert progress.done["sending (KiB)"] == pytest.approx(len(model) / 1024, abs=0.1)


def test_a_board_that_is_killed_again_and_again_is_given_up(
    model: bytes, images: NDArray[np.float32], shell_for_ssh: Callable[..., None]
) -> None:
    killing = "images = unpacked(command, payload)\n        "
    shell_for_ssh({killing: f"{killing}os.kill(os.getpid(), 9)\n        "})
    with (
        runner(model) as board,
        pytest.raises(TargetError, match="3 times in a row") as caught,
    ):
        board.infer(images)
    assert caught.value.hint.endswith("run the same command again")
    assert "kept" not in caught.value.hint


@pytest.mark.usefixtures("shell_for_ssh")
def test_a_model_that_is_too_new_for_the_board_is_told_with_the_line(model: bytes) -> None:
    proto = onnx.load_model_from_string(model)
    proto.opset_import[0].version = 999
    with (
        pytest.raises(ExportError, match="rejects the model") as caught,
        runner(proto.SerializeToString()),
    ):
        pass
    assert "too new for onnxruntime" in caught.value.hint
    assert "ssh -p 2222 pi@board" in caught.value.hint
    assert "-m pip install numpy onnxruntime" in caught.value.hint


@pytest.mark.usefixtures("shell_for_ssh")
def test_a_model_that_the_runtime_does_not_know_is_told(model: bytes) -> None:
    proto = onnx.load_model_from_string(model)
    proto.graph.node[0].op_type = "Frobnicate"
    board = runner(proto.SerializeToString())
    with pytest.raises(ExportError, match="Frobnicate") as caught:
        board.activate()
    assert "another target" in caught.value.hint
    assert board._board._wire is None  # the connection is not left open


@pytest.mark.parametrize("content", [b"junk", b""])
def test_what_is_no_model_is_not_sent(content: bytes) -> None:
    with pytest.raises(ExportError, match=r"no ONNX model|not one input"), runner(content):
        pass


def test_an_answer_for_other_images_is_refused(
    model: bytes, images: NDArray[np.float32], shell_for_ssh: Callable[..., None]
) -> None:
    shell_for_ssh({'"shape": list(outputs.shape)': '"shape": [1, outputs.size]'})
    with runner(model) as board, pytest.raises(TargetError, match="other images"):
        board.infer(images)


def test_an_agent_of_another_version_is_refused(
    model: bytes, shell_for_ssh: Callable[..., None]
) -> None:
    shell_for_ssh({'"wire": WIRE}': '"wire": 1}'})
    with pytest.raises(TargetError, match="speaks version 1"), runner(model):
        pass


FILES = {"SHA256SUMS": b"0  engines/cpu/engine.json\n", "engines/cpu/engine.json": b"{}"}


@pytest.mark.usefixtures("shell_for_ssh")
def test_files_are_kept_where_asked_for(model: bytes, tmp_path: Path) -> None:
    folder = tmp_path / "there"
    with runner(model) as board:
        board.check_room(str(folder), 100)
        assert not folder.exists()
        kill_agent(board)
        assert board.keep(str(folder), FILES) == str(folder)
        assert board.keep(str(folder), FILES) == str(folder)  # in the place of what was kept
    assert {
        str(file.relative_to(tmp_path)): file.read_bytes()
        for file in tmp_path.rglob("*")
        if file.is_file()
    } == {f"there/{name}": content for name, content in FILES.items()}


@pytest.mark.parametrize(
    ("replacing", "told"),
    [
        ({"os.fsync(file.fileno())": "raise OSError(28, 'No space left on device')"}, "No space"),
        ({"os.fsync(file.fileno())": "raise OSError(30, 'Read-only file system')"}, "Read-only"),
        ({"begin += size": "begin += size + 1"}, "arrived changed"),
    ],
)
def test_a_board_that_cannot_write_keeps_nothing(
    replacing: dict[str, str],
    told: str,
    model: bytes,
    shell_for_ssh: Callable[..., None],
    tmp_path: Path,
) -> None:
    shell_for_ssh(replacing)
    with runner(model) as board, pytest.raises(TargetError, match=told) as caught:
        board.keep(str(tmp_path / "there"), FILES)
    assert f"{tmp_path}/there on ssh://pi@board:2222 cannot be written" in caught.value.message
    assert "make room there" in caught.value.hint
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("shell_for_ssh")
def test_room_is_looked_for_before_anything_is_kept(model: bytes, tmp_path: Path) -> None:
    (tmp_path / "notes").write_text("mine")
    with runner(model) as board:
        for folder, needed, told in (
            (tmp_path, 1, "did not put there: notes"),
            (tmp_path / "new", 2**62, "are free"),
            (tmp_path / "no" / "parent", 1, "there is no folder"),
        ):
            with pytest.raises(TargetError, match=told):
                board.check_room(str(folder), needed)
    assert [each.name for each in tmp_path.iterdir()] == ["notes"]
