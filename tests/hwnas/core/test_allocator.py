from __future__ import annotations

import subprocess
import sys

import pytest

from hwnas.core.allocator import keep_freed_memory

# Pages that the system maps while two blocks of a layer's size are used and freed, again and again.
COUNT = """
import resource

import torch

from hwnas.core.allocator import keep_freed_memory


def faults(rounds=5):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(rounds):
        first, second = (torch.ones(12_000_000) for _ in range(2))  # 48 MB each
        del first, second
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


plain = faults()
assert keep_freed_memory()
faults(rounds=25)  # of these up to 10 take new places, as small blocks settle between large ones
print(plain, faults())
"""


@pytest.mark.skipif(not keep_freed_memory(), reason="the allocator is not glibc's")
def test_what_was_freed_is_used_again() -> None:
    process = subprocess.run(
        [sys.executable, "-c", COUNT], capture_output=True, text=True, check=True, timeout=60
    )
    plain, kept = map(int, process.stdout.split())
    assert plain > 100_000  # 10 blocks of 11,700 pages
    assert kept < 0.01 * plain


def test_elsewhere_nothing_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.platform", "darwin")
    assert not keep_freed_memory()
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.setattr("ctypes.CDLL", lambda _: object())  # musl has no mallopt
    assert not keep_freed_memory()
