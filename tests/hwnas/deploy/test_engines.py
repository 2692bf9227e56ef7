"""Engines of a bundle: found, checked before anything is compiled, opened as they were made."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest

from hwnas.core.artifacts import sha256_of
from hwnas.core.decoding import encode_json
from hwnas.core.environment import this_device
from hwnas.core.errors import ArtifactError, ConfigError, TargetError
from hwnas.deploy import engines
from hwnas.deploy.engines import (
    engine_card,
    engine_cards,
    made_elsewhere,
    model_of,
    open_runner,
    runner_for,
)
from hwnas.deploy.plans import PlanPlace
from hwnas_export.onnxruntime_runner import OnnxRuntimeRunner
from hwnas_export.tensorrt_runner import TensorRTRunner
from hwnas_profilers.targets import parse_target

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from hwnas.deploy.records import EngineCard

    NewCard = Callable[..., EngineCard]

HERE = PlanPlace(package="tensorrt", version="10.3", device="GPU A", compute_capability="8.9")


class Said:
    """Progress that keeps what is said."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def task(self, *_: object, **__: object) -> object:
        raise AssertionError("nothing here takes long")

    def say(self, message: str) -> None:
        self.lines.append(message)


@pytest.fixture
def bundle(tmp_path: Path, portable: bytes, new_card: NewCard) -> Path:
    (tmp_path / "model.onnx").write_bytes(portable)
    for card in (new_card(), new_card(target="openvino-cpu")):
        folder = tmp_path / "engines" / card.target
        folder.mkdir(parents=True)
        (folder / "engine.json").write_bytes(encode_json(card))
    return tmp_path


@pytest.fixture
def plan_card(bundle: Path, new_card: NewCard, monkeypatch: pytest.MonkeyPatch) -> EngineCard:
    """An engine of TensorRT, whose plan is no plan: it must not get as far as to be read."""
    monkeypatch.setattr(engines, "require_target", parse_target)
    monkeypatch.setattr(engines, "plan_place", lambda: HERE)
    card = new_card(
        target="tensorrt-fp32",
        plan="engines/tensorrt-fp32/engine.plan",
        plan_sha256=sha256_of(b"no plan"),
        packages={"tensorrt": "10.3"},
        compute_capabilities=("8.9",),
        device=replace(this_device(), name="GPU A"),
    )
    path = bundle / card.plan
    path.parent.mkdir()
    path.write_bytes(b"no plan")
    return card


def test_sidecars_are_found_by_their_target(bundle: Path) -> None:
    assert [card.target for card in engine_cards(bundle)] == ["onnxruntime-cpu", "openvino-cpu"]
    assert engine_card(bundle, "openvino-cpu").target == "openvino-cpu"
    with pytest.raises(TargetError, match=r"no engine for target `onnxruntime-cp`\n.*did you mean"):
        engine_card(bundle, "onnxruntime-cp")


def test_a_bundle_without_engines_says_so(tmp_path: Path) -> None:
    assert engine_cards(tmp_path) == ()
    with pytest.raises(TargetError, match=r"holds no engine.*\n.*it holds: none"):
        engine_card(tmp_path, "onnxruntime-cpu")


def test_an_engine_runs_with_the_settings_of_its_sidecar(bundle: Path, new_card: NewCard) -> None:
    images = np.random.default_rng(0).random((3, 1, 8, 8), dtype=np.float32)
    card = new_card(session={"memory_arena": "off"}, threads=2)
    runner = open_runner(bundle, card)
    assert isinstance(runner, OnnxRuntimeRunner)
    with runner, open_runner(bundle, new_card()) as usual:
        np.testing.assert_allclose(runner.infer(images), usual.infer(images), atol=1e-6)
        assert runner._session is not None
        options = runner._session.get_session_options()
        assert options.intra_op_num_threads == 2
        assert not options.enable_cpu_mem_arena


@pytest.mark.parametrize("change", ["flip", "cut", "remove"])
def test_a_changed_model_is_refused_before_it_is_compiled(
    change: str, bundle: Path, new_card: NewCard, portable: bytes
) -> None:
    path = bundle / "model.onnx"
    if change == "remove":
        path.unlink()
    else:
        flipped = bytes([portable[0] ^ 1]) + portable[1:]
        path.write_bytes(portable[:-1] if change == "cut" else flipped)
    with pytest.raises(ArtifactError, match=r"model.onnx is (missing|not the file)"):
        model_of(bundle, new_card())
    with pytest.raises(ArtifactError):
        open_runner(bundle, new_card())


def test_a_changed_plan_is_refused_first_of_all(
    bundle: Path, plan_card: EngineCard, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never() -> PlanPlace:
        raise AssertionError("asked for the GPU before the hash was checked")

    monkeypatch.setattr(engines, "plan_place", never)
    (bundle / plan_card.plan).write_bytes(b"another")
    with pytest.raises(ArtifactError, match=r"engine.plan is not the file that its sidecar"):
        open_runner(bundle, plan_card)


@pytest.mark.parametrize(
    "place",
    [
        replace(HERE, version="10.16"),
        replace(HERE, compute_capability="9.0"),
        replace(HERE, device="GPU B"),
        replace(HERE, package="tensorrt_rtx"),
    ],
)
def test_a_plan_of_elsewhere_is_refused_with_the_command_that_builds_it(
    place: PlanPlace, bundle: Path, plan_card: EngineCard, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engines, "plan_place", lambda: place)
    with pytest.raises(TargetError, match="cannot run here") as caught:
        open_runner(bundle, plan_card)
    assert f"`hwnas rebuild {bundle} --out NEW`" in caught.value.hint


def test_a_plan_of_here_is_what_is_run(bundle: Path, plan_card: EngineCard) -> None:
    runner = open_runner(bundle, plan_card)
    assert isinstance(runner, TensorRTRunner)
    assert runner._given is not None
    assert runner._given.content == b"no plan"
    assert runner._settings.batches == plan_card.batches


def test_where_settings_were_chosen_elsewhere_it_is_said(bundle: Path, new_card: NewCard) -> None:
    said = Said()
    card = new_card(device=this_device())
    assert made_elsewhere(card) == made_elsewhere(new_card()) == ""
    open_runner(bundle, card, progress=said)  # type: ignore[arg-type]
    assert said.lines == []
    card = new_card(device=replace(this_device(), name="another board"))
    open_runner(bundle, card, progress=said)  # type: ignore[arg-type]
    (line,) = said.lines
    assert "chosen on another board" in line
    assert "`hwnas rebuild" in line


@pytest.mark.parametrize(
    ("target", "says"),
    [
        ("torch-cpu", "runs no ONNX model"),
        ("onnxruntime-cpuu", "no target"),
    ],
)
def test_what_runs_no_onnx_model_is_refused(target: str, says: str) -> None:
    with pytest.raises(TargetError, match=says):
        runner_for(target, b"")


def test_settings_are_for_runtimes_that_have_some(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "require_target", parse_target)
    with pytest.raises(ConfigError, match="`openvino-cpu` has no settings of a session"):
        runner_for("openvino-cpu", b"", session={"memory_arena": "off"})
    with pytest.raises(ConfigError, match="no setting `arena`"):
        runner_for("onnxruntime-cpu", b"", session={"arena": "off"})
