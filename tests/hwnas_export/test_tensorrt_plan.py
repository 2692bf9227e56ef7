"""Plans from elsewhere: the checks, and a process that really crashes in our place."""

from __future__ import annotations

import signal
import subprocess
import sys
from typing import Any

import pytest

from hwnas.core.artifacts import sha256_of
from hwnas.core.errors import ArtifactError, ConfigError, TargetError
from hwnas_export import tensorrt_plan
from hwnas_export.tensorrt_plan import GivenPlan, check_plan, probe_plan

PLAN = b"a plan"
DIGEST = sha256_of(PLAN)


@pytest.mark.parametrize(
    "missing", [{"sha256": ""}, {"compute_capabilities": ()}], ids=["hash", "capabilities"]
)
def test_a_plan_of_which_too_little_is_known_is_none(missing: dict[str, Any]) -> None:
    facts = {"content": PLAN, "sha256": DIGEST, "compute_capabilities": ("8.6",)}
    with pytest.raises(ConfigError, match="comes with its SHA-256 and the compute capabilities"):
        GivenPlan(**(facts | missing))


def test_the_hash_comes_before_the_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_driver() -> None:
        raise TargetError("there is no NVIDIA driver here")

    monkeypatch.setattr(tensorrt_plan, "cuda_driver", no_driver)
    swapped = GivenPlan(content=b"another", sha256=DIGEST, compute_capabilities=("8.6",))
    with pytest.raises(ArtifactError, match="SHA-256 differs"):
        check_plan(swapped)
    own = GivenPlan(content=PLAN, sha256=DIGEST, compute_capabilities=("8.6",))
    with pytest.raises(TargetError, match="no NVIDIA driver"):
        check_plan(own)


def script(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    """Let another program answer in the probe's place."""
    run = subprocess.run

    def instead(command: list[str], **options: Any) -> Any:
        assert command == [sys.executable, "-m", "hwnas_export.tensorrt_probe"]
        return run([sys.executable, "-c", f"import sys, os, time; {text}"], **options)

    monkeypatch.setattr(subprocess, "run", instead)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (f"os.kill(os.getpid(), {int(signal.SIGSEGV)})", "crashes over the plan .SIGSEGV."),
        ("sys.exit('a wrong magic number')", "does not take the plan: a wrong magic number"),
        ("time.sleep(60)", "has not deserialized the plan in 0.5 s"),
    ],
    ids=["crash", "refusal", "no end"],
)
def test_what_ends_the_probe_does_not_end_us(
    monkeypatch: pytest.MonkeyPatch, text: str, words: str
) -> None:
    script(monkeypatch, text)
    if "sleep" in text:
        monkeypatch.setattr(tensorrt_plan, "_PROBE_SECONDS", 0.5)
    with pytest.raises(TargetError, match=words) as caught:
        probe_plan(PLAN)
    assert "hwnas rebuild" in caught.value.hint


def test_the_probe_is_given_the_plan_and_may_be_content(monkeypatch: pytest.MonkeyPatch) -> None:
    script(monkeypatch, f"sys.exit(0 if sys.stdin.buffer.read() == {PLAN!r} else 'another')")
    probe_plan(PLAN)
    with pytest.raises(TargetError, match="another"):
        probe_plan(b"junk")


@pytest.mark.tensorrt
def test_tensorrt_itself_is_asked() -> None:
    pytest.importorskip("tensorrt_rtx", reason="needs a TensorRT whose libraries are here")
    with pytest.raises(TargetError, match=r"TensorRT (crashes over|does not take) the plan"):
        probe_plan(b"junk" * 1000)


def test_a_probe_that_cannot_start_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensorrt_plan, "_PROBE", "hwnas_export.no_such_module")
    with pytest.raises(TargetError, match="no_such_module"):
        probe_plan(PLAN)
