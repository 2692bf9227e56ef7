"""A race: who is timed, who is not and why, and that all are given the same."""

from __future__ import annotations

import threading
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from torch import nn

from hwnas.core.errors import ConfigError, ExportError
from hwnas.deploy.race import RELATIVE_L2, race
from hwnas.deploy.rivals import (
    COMPILED,
    EAGER,
    OWN_THREADS,
    Contestant,
    DefaultOnnxRuntimeRunner,
    engines_of,
    rivals_of,
)
from hwnas_export.torch_runner import TorchRunner
from hwnas_profilers.timing import TimingSettings

if TYPE_CHECKING:
    from collections.abc import Callable

    from hwnas.deploy.race import Race
    from hwnas_export.runner import Runner
    from tests.hwnas.deploy.bundled.conftest import SmallBundle

SHAPE = (1, 8, 8)
QUICK = TimingSettings(
    relative_width=0.5, min_samples=6, max_samples=8, samples_per_round=3, min_sample_us=0,
    max_disturbed=0.0,
)  # fmt: skip


def contestant(open_: Callable[[], Runner], **others: Any) -> Contestant:
    settings = {"name": "x", "kind": "rival", "precision": "fp32", "threads": 1, **others}
    return Contestant(open=open_, **settings)


def run(bundle: SmallBundle, *contestants: Contestant, **others: Any) -> Race:
    settings: dict[str, Any] = {
        "batches": (1, 3), "threads": 1, "settings": QUICK, "compile_limit_s": 0.0, **others,
    }  # fmt: skip
    return race(contestants, bundle.twin, SHAPE, **settings)


def test_engine_and_rivals_are_timed_in_each_batch(small_bundle: SmallBundle) -> None:
    engines = engines_of(small_bundle.folder, [small_bundle.card])
    rivals = rivals_of(small_bundle.twin, small_bundle.model, SHAPE, threads=1, engines=engines)
    assert [each.name for each in rivals] == [
        EAGER, COMPILED, "ONNX Runtime default, 1 thread", "ONNX Runtime default", "openvino-cpu",
    ]  # fmt: skip
    chosen = [each for each in (*engines, *rivals) if each.name != "openvino-cpu"]
    found = run(small_bundle, *chosen)
    timed = ["onnxruntime-cpu", EAGER, "ONNX Runtime default, 1 thread", "ONNX Runtime default"]
    assert [(lane.batch, lane.name) for lane in found.lanes] == [
        (batch, name) for batch in (1, 3) for name in timed
    ]
    assert {(each.batch, each.name) for each in found.absent} == {(1, COMPILED), (3, COMPILED)}
    assert "set to 0" in found.absent[0].reason
    for lane in found.lanes:
        assert lane.relative_l2 <= RELATIVE_L2["fp32"]
        assert lane.latency.n == len(lane.samples_us) >= QUICK.min_samples
        assert lane.images_per_s == pytest.approx(lane.batch / lane.latency.median_us * 1e6)
    assert {lane.threads for lane in found.lanes if lane.name == "ONNX Runtime default"} == {
        OWN_THREADS
    }


def test_a_rival_is_not_named_twice(small_bundle: SmallBundle) -> None:
    engines = engines_of(small_bundle.folder, [replace(small_bundle.card, target="openvino-cpu")])
    rivals = rivals_of(small_bundle.twin, small_bundle.model, SHAPE, threads=2, engines=engines)
    assert "openvino-cpu" not in [each.name for each in rivals]
    assert "ONNX Runtime default, 2 threads" in [each.name for each in rivals]


def test_torch_runs_on_the_gpu_too_where_an_engine_does(small_bundle: SmallBundle) -> None:
    engines = engines_of(
        small_bundle.folder, [replace(small_bundle.card, target="onnxruntime-cuda")]
    )
    rivals = rivals_of(small_bundle.twin, small_bundle.model, SHAPE, threads=1, engines=engines)
    assert rivals[-1].name == "torch-cuda, captured graph"


def other_network() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 3))


class Broken(nn.Module):
    """A network that gives NaN, or another shape, or fails."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        if self.how == "fails":
            raise RuntimeError("no\nsuch   kernel")
        classes = 4 if self.how == "shape" else 3
        return torch.full((len(images), classes), float("nan" if self.how == "nan" else 0))


@pytest.mark.parametrize(
    ("module", "reason"),
    [
        (other_network(), "it computes something else: its logits are"),
        (Broken("zeros"), "it computes something else: its logits are 1 of their norm away"),
        (Broken("nan"), "it computes something else: its logits are inf"),
        (Broken("shape"), "it computes something else"),
        (Broken("fails"), "RuntimeError: no such kernel"),
    ],
    ids=["another network", "zeros", "NaN", "another shape", "an error"],
)
def test_who_computes_something_else_is_named_and_not_timed(
    small_bundle: SmallBundle, module: nn.Module, reason: str
) -> None:
    wrong = contestant(lambda: TorchRunner(module, (None, *SHAPE)), name="wrong")
    right = contestant(lambda: TorchRunner(small_bundle.twin, (None, *SHAPE)), name="right")
    found = run(small_bundle, wrong, right, batches=(2,))
    assert [lane.name for lane in found.lanes] == ["right"]
    assert [each.name for each in found.absent] == ["wrong"]
    assert found.absent[0].reason.startswith(reason)


@pytest.mark.parametrize("precision", RELATIVE_L2)
def test_another_network_is_refused_in_every_precision(
    small_bundle: SmallBundle, precision: str
) -> None:
    wrong = contestant(lambda: TorchRunner(other_network(), (None, *SHAPE)), precision=precision)
    assert not run(small_bundle, wrong, batches=(4,)).lanes


def test_an_engines_own_error_is_a_reason_and_any_other_is_a_fault(
    small_bundle: SmallBundle,
) -> None:
    def refuse() -> Runner:
        raise ExportError("no such operator")

    def fail() -> Runner:
        raise ZeroDivisionError

    found = run(small_bundle, contestant(refuse, kind="engine"), batches=(1,))
    assert found.absent[0].reason == "no such operator"
    with pytest.raises(ZeroDivisionError):
        run(small_bundle, contestant(fail, kind="engine"), batches=(1,))


def test_a_changed_engine_is_not_run(small_bundle: SmallBundle) -> None:
    engines = engines_of(small_bundle.folder, [small_bundle.card])
    (small_bundle.folder / "model.onnx").write_bytes(small_bundle.model + b"\0")
    found = run(small_bundle, *engines, batches=(1,))
    assert "SHA-256" in found.absent[0].reason


def test_an_engine_is_left_out_of_batches_that_it_does_not_take(
    small_bundle: SmallBundle,
) -> None:
    engines = engines_of(small_bundle.folder, [replace(small_bundle.card, batches=(1, 1, 2))])
    found = run(small_bundle, *engines)
    assert [lane.batch for lane in found.lanes] == [1]
    assert [(each.batch, each.reason) for each in found.absent] == [
        (3, "it takes batches from 1 to 2")
    ]


def test_what_does_not_compile_in_time_is_left_out(small_bundle: SmallBundle) -> None:
    def slow() -> Runner:
        time.sleep(20)
        raise AssertionError("it went on")

    begin = time.perf_counter()
    found = run(small_bundle, contestant(slow, name=COMPILED), batches=(1,), compile_limit_s=0.05)
    assert time.perf_counter() - begin < 15
    assert found.absent[0].reason == "it was not compiled after 0.05 s"


def test_in_another_thread_nothing_is_interrupted(small_bundle: SmallBundle) -> None:
    found: list[Race] = []
    quick = contestant(lambda: TorchRunner(small_bundle.twin, (None, *SHAPE)), name=COMPILED)
    thread = threading.Thread(
        target=lambda: found.append(run(small_bundle, quick, batches=(1,), compile_limit_s=5.0))
    )
    thread.start()
    thread.join()
    assert [lane.name for lane in found[0].lanes] == [COMPILED]


def test_torch_compile_is_asked_for_the_whole_network_in_one_shape(
    small_bundle: SmallBundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the compiler itself only its front is tested: its C++ takes half a minute."""
    asked: list[dict[str, Any]] = []
    compile_ = torch.compile

    def without_cpp(module: nn.Module, **settings: Any) -> Any:
        asked.append(settings)
        return compile_(module, backend="eager", **settings)

    monkeypatch.setattr(torch, "compile", without_cpp)
    rivals = rivals_of(small_bundle.twin, small_bundle.model, SHAPE, threads=1)
    compiled = [each for each in rivals if each.name == COMPILED]
    found = run(small_bundle, *compiled, compile_limit_s=120.0)
    assert [lane.batch for lane in found.lanes] == [1, 3], found.absent
    assert asked == [{"dynamic": False, "fullgraph": True}] * 2


@pytest.mark.parametrize("batches", [(), (0,), (1, 1), (4, -2)])
def test_batches_that_are_none_are_refused(
    small_bundle: SmallBundle, batches: tuple[int, ...]
) -> None:
    with pytest.raises(ConfigError, match="batches are"):
        run(small_bundle, batches=batches)


def test_the_default_session_is_a_runner_like_others(small_bundle: SmallBundle) -> None:
    images = np.random.default_rng(0).random((2, *SHAPE), dtype=np.float32)
    with TorchRunner(small_bundle.twin, (None, *SHAPE)) as twin:
        expected = twin.infer(images)
    for threads in (OWN_THREADS, 1):
        with DefaultOnnxRuntimeRunner(small_bundle.model, threads=threads) as runner:
            assert runner.input_shape == (None, *SHAPE)
            np.testing.assert_allclose(runner.infer(images), expected, atol=1e-5)
            assert runner.call_on(images)() is not None
            assert runner.sampler_on(images)(2) > 0
    with pytest.raises(ExportError, match="ONNX Runtime rejects"):
        DefaultOnnxRuntimeRunner(b"junk", threads=1).activate()
