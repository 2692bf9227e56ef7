"""What is chosen by measurement: the usual is kept unless another is clearly faster."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from hwnas.deploy.choices import chosen_session, fastest, latency_choice
from hwnas_export.runner import Runner
from hwnas_profilers.records import Statistics
from hwnas_profilers.timing import TimingSettings

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from numpy.typing import NDArray

    from hwnas_export.runner import Sampler

QUICK = TimingSettings(
    relative_width=0.05, min_samples=20, max_samples=24, warmup_calls=1, min_sample_us=0.0
)


class Clockwork(Runner):
    """A runner whose calls take a given time, by its own clock; it is never waited for."""

    def __init__(self, latency_us: Callable[[], float]) -> None:
        super().__init__()
        self.name = "clockwork"
        self.samples = 0
        self._latency_us = latency_us

    def _activate_impl(self) -> None:
        pass

    def _close_impl(self) -> None:
        pass

    def _input_shape_impl(self) -> tuple[int | None, int, int, int]:
        return (None, 1, 2, 2)

    def _infer_impl(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        return images

    def _call_on_impl(self, images: NDArray[np.float32]) -> Callable[[], object]:
        return lambda: images

    def _sampler_on_impl(self, images: NDArray[np.float32]) -> Sampler:
        def sample(calls: int) -> float:
            self.samples += 1
            return 1e3 * calls * self._latency_us()

        return sample


def noisy(latency_us: float, share: float = 0.002) -> Callable[[], float]:
    rng = np.random.default_rng(int(latency_us))
    return lambda: latency_us * (1 + share * rng.random())


def statistics(low_us: float, high_us: float) -> Statistics:
    median = (low_us + high_us) / 2
    return Statistics(
        n=60, median_us=median, low_us=low_us, high_us=high_us, min_us=low_us, p10_us=low_us,
        p90_us=high_us,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("others", "least_gain", "index"),
    [
        ([], 0.0, 0),
        ([(90.0, 99.0)], 0.0, 1),
        ([(90.0, 100.0)], 0.0, 0),  # the intervals touch
        ([(80.0, 110.0)], 0.0, 0),
        ([(90.0, 99.0), (80.0, 85.0)], 0.0, 2),
        ([(98.0, 99.0)], 0.02, 0),
        ([(96.0, 97.0)], 0.02, 1),
        ([(200.0, 210.0)], 0.0, 0),
    ],
)
def test_only_what_is_clearly_faster_replaces_the_usual(
    others: list[tuple[float, float]], least_gain: float, index: int
) -> None:
    found = [statistics(100.0, 104.0), *(statistics(*each) for each in others)]
    assert fastest(found, least_gain=least_gain) == index


@pytest.mark.parametrize(
    ("latencies_us", "chosen"),
    [
        ({"": 100, "a": 100, "b": 101}, {}),
        ({"": 100, "a": 99, "b": 100}, {}),  # clearly faster, but by too little
        ({"": 100, "a": 90, "b": 95}, {"a": "on"}),
        ({"": 100, "a": 300, "b": 80}, {"b": "on"}),
    ],
)
def test_a_session_is_chosen_where_it_is_worth_it(
    latencies_us: dict[str, float], chosen: dict[str, str]
) -> None:
    def runner_with(session: Mapping[str, str]) -> Runner:
        return Clockwork(noisy(latencies_us["".join(session)]))

    assert chosen_session(runner_with, [{"a": "on"}, {"b": "on"}], timing=QUICK) == chosen


def test_what_wins_once_by_chance_does_not_win_twice() -> None:
    def runner_with(session: Mapping[str, str]) -> Runner:
        if not session:
            return Clockwork(noisy(100))
        calls = iter(range(10_000))
        # Faster until it was timed once, as after a change of the processor's clock.
        return Clockwork(lambda: 80.0 if next(calls) < 30 else 100.0)

    assert chosen_session(runner_with, [{"a": "on"}], timing=QUICK) == {}


def test_what_is_far_slower_is_hardly_timed() -> None:
    made: list[Clockwork] = []

    def runner_with(session: Mapping[str, str]) -> Runner:
        made.append(Clockwork(noisy(1000 if session else 100)))
        return made[-1]

    assert chosen_session(runner_with, [{"a": "on"}], timing=QUICK) == {}
    usual, slow = made
    assert slow.samples < 6 < usual.samples


@pytest.mark.parametrize(("engine_us", "pays"), [(50, True), (100, False), (150, False)])
def test_an_engine_pays_where_it_is_faster_than_fp32(engine_us: float, pays: bool) -> None:
    with Clockwork(noisy(engine_us)) as engine, Clockwork(noisy(100)) as fp32:
        choice = latency_choice(engine, fp32, batch=4, timing=QUICK)
    assert choice.pays is pays
    assert choice.batch == 4
    assert choice.engine.median_us == pytest.approx(engine_us, rel=0.01)
    assert choice.fp32.median_us == pytest.approx(100, rel=0.01)
