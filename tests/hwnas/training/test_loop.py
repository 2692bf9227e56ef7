from __future__ import annotations

import math
import pickle
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from hwnas.core.artifacts import write_atomically
from hwnas.core.errors import ArtifactError, ConfigError, InputFileError, TrainingDivergedError
from hwnas.training.loop import (
    Epoch,
    Figures,
    Stateful,
    check_rates,
    one_cycle,
    run_epochs,
    set_learning_rate,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

pytestmark = pytest.mark.usefixtures("one_thread")


class Line:
    """Fits a line to noise: a network, an optimizer with state, and randomness."""

    def __init__(self) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.network = nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))
        self.optimizer = torch.optim.Adam(self.network.parameters(), lr=0.1)
        self.before_step: Callable[[Epoch, int], None] = lambda epoch, step: None
        self.loss_factor = 1.0

    @property
    def parts(self) -> dict[str, Stateful]:
        return {"network": self.network, "optimizer": self.optimizer}

    def body(self, epoch: Epoch) -> Figures:
        losses = []
        for step in range(3):
            self.before_step(epoch, step)
            inputs = torch.randn(8, 2, generator=epoch.generator)
            loss = self.loss_factor * self.network(inputs).square().mean()
            self.optimizer.zero_grad()
            torch.autograd.backward(loss)
            losses.append(epoch.step(loss, 3))
            self.optimizer.step()
        return {"loss": sum(losses) / 3}

    def run(
        self, checkpoint: Path, *, seed: int = 0, epochs: int = 4, **more: Any
    ) -> list[Figures]:
        return run_epochs(
            "line",
            self.body,
            epochs=epochs,
            seed=seed,
            parts=self.parts,
            checkpoint=checkpoint,
            settings={"seed": seed, "epochs": epochs, "rate": 0.1, "blocks": (1, 2)},
            **more,
        )


class Recorder:
    """Progress that remembers."""

    def __init__(self) -> None:
        self.done = 0.0
        self.began = -1.0
        self.total = 0.0
        self.notes: list[str] = []
        self.said: list[str] = []

    @contextmanager
    def task(self, name: str, total: float, *, done: float = 0) -> Iterator[Recorder]:
        self.began = self.done = done
        self.total = total
        yield self

    def advance(self, steps: float = 1, note: str = "") -> None:
        self.done += steps
        if note:
            self.notes.append(note)

    def say(self, message: str) -> None:
        self.said.append(message)


def weights_of(line: Line) -> bytes:
    return pickle.dumps([value.tolist() for value in line.network.state_dict().values()])


@pytest.mark.parametrize("step", [0, 2])
@pytest.mark.parametrize("epoch", [0, 1, 3])
def test_a_run_cut_anywhere_ends_in_the_same_numbers(tmp_path: Path, epoch: int, step: int) -> None:
    whole = Line()
    expected = whole.run(tmp_path / "whole")

    def cut(at: Epoch, here: int) -> None:
        if (at.index, here) == (epoch, step):
            raise KeyboardInterrupt

    first = Line()
    first.before_step = cut
    with pytest.raises(KeyboardInterrupt):
        first.run(tmp_path / "cut")
    second = Line()
    assert second.run(tmp_path / "cut") == expected
    assert weights_of(second) == weights_of(whole)


def test_a_finished_run_is_not_repeated(tmp_path: Path) -> None:
    first = Line()
    history = first.run(tmp_path / "c")

    def never(epoch: Epoch, step: int) -> None:
        raise AssertionError("an epoch was repeated")

    again = Line()
    again.before_step = never
    assert again.run(tmp_path / "c") == history
    assert weights_of(again) == weights_of(first)


def test_progress_goes_on_where_it_was_left(tmp_path: Path) -> None:
    def cut(at: Epoch, step: int) -> None:
        if at.index == 2:
            raise KeyboardInterrupt

    line = Line()
    line.before_step = cut
    with pytest.raises(KeyboardInterrupt):
        line.run(tmp_path / "c")
    recorder = Recorder()
    Line().run(tmp_path / "c", progress=recorder)
    assert (recorder.began, recorder.total) == (2, 4)
    assert recorder.done == pytest.approx(4)
    assert recorder.said == ["line: going on after epoch 2 of 4"]
    assert len(recorder.notes) == 2
    assert recorder.notes[0].startswith("loss ")


def test_seeds_and_epochs_differ_in_their_randomness(tmp_path: Path) -> None:
    losses = [
        figures["loss"]
        for seed in (0, 1)
        for figures in Line().run(tmp_path / f"{seed}", seed=seed)
    ]
    assert len(set(losses)) == len(losses)

    def first_draw(seed: int, index: int) -> float:
        epoch = Epoch(name="x", index=index, count=9, seed=seed, report=lambda *_: None)
        return float(torch.rand(1, generator=epoch.generator))

    draws = {first_draw(seed, index) for seed in range(10) for index in range(9)}
    assert len(draws) == 90
    assert first_draw(2**62, 1) == first_draw(2**62, 1)  # any seed will do


@given(index=st.integers(0, 9), step=st.integers(0, 20))
def test_the_share_done_only_grows(index: int, step: int) -> None:
    epoch = Epoch(name="x", index=index, count=10, seed=0, report=lambda *_: None)
    assert index / 10 <= epoch.fraction(step, 20) <= (index + 1) / 10


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_no_number_stops_and_the_last_good_checkpoint_is_kept(
    tmp_path: Path, value: float
) -> None:
    line = Line()

    def spoil(epoch: Epoch, step: int) -> None:
        if (epoch.index, step) == (2, 1):
            line.loss_factor = value

    line.before_step = spoil
    with pytest.raises(TrainingDivergedError, match=r"of line is .* in epoch 3, step 2") as caught:
        line.run(tmp_path / "c")
    assert "last good checkpoint is kept" in caught.value.hint
    # What is kept is what the first two epochs made, and a run goes on from there.
    good = Line()
    assert len(good.run(tmp_path / "c")) == 4
    assert weights_of(good) == weights_of_uncut(tmp_path)


def weights_of_uncut(tmp_path: Path) -> bytes:
    line = Line()
    line.run(tmp_path / "uncut")
    return weights_of(line)


def test_weights_that_are_no_numbers_are_not_kept(tmp_path: Path) -> None:
    line = Line()

    def spoil(epoch: Epoch, step: int) -> None:
        # The loss of the epoch's last step is finite; what the step makes of the weights is not.
        if (epoch.index, step) == (1, 2):
            set_learning_rate(line.optimizer, math.inf)

    line.before_step = spoil
    with pytest.raises(TrainingDivergedError, match="no longer finite after epoch 2"):
        line.run(tmp_path / "c")
    good = Line()
    good.run(tmp_path / "c")
    assert weights_of(good) == weights_of_uncut(tmp_path)


def test_a_checkpoint_of_other_settings_is_refused_and_left_alone(tmp_path: Path) -> None:
    checkpoint = tmp_path / "c"
    Line().run(checkpoint)
    before = checkpoint.read_bytes()
    with pytest.raises(ConfigError, match="of line was made with other settings") as caught:
        Line().run(checkpoint, seed=1, epochs=6)
    assert "epochs: 4 -> 6; seed: 0 -> 1)" in caught.value.message
    assert "rate" not in caught.value.message
    assert f"delete {checkpoint}" in caught.value.hint
    assert checkpoint.read_bytes() == before


def test_a_setting_that_is_new_or_gone_is_a_difference(tmp_path: Path) -> None:
    line = Line()
    common: dict[str, Any] = {"epochs": 1, "seed": 0, "parts": line.parts,
                              "checkpoint": tmp_path / "c"}  # fmt: skip
    run_epochs("line", line.body, settings={"old": 1}, **common)
    with pytest.raises(ConfigError, match=r"\(new: None -> 2; old: 1 -> None\)"):
        run_epochs("line", line.body, settings={"new": 2}, **common)


class Evil:
    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return (exec, ("raise SystemExit('code of a checkpoint was run')",))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def text(path: Path) -> None:
    path.write_text("not a checkpoint")


def evil(path: Path) -> None:
    torch.save({"schema": 1, "settings": Evil()}, path)


def evil_pickle(path: Path) -> None:
    path.write_bytes(pickle.dumps(Evil()))


def other_schema(path: Path) -> None:
    state = torch.load(path, weights_only=True)
    torch.save(state | {"schema": 99}, path)


def bare_tensor(path: Path) -> None:
    torch.save(torch.zeros(2), path)


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (cut, "cannot be read"),
        (empty, "cannot be read"),
        (text, "cannot be read"),
        (evil, "cannot be read"),
        (evil_pickle, "cannot be read"),
        (other_schema, "has schema 99; this hwnas reads 1"),
        (bare_tensor, "has schema None"),
    ],
)
def test_a_damaged_checkpoint_is_refused_and_never_run(
    tmp_path: Path, damage: Callable[[Path], None], says: str
) -> None:
    checkpoint = tmp_path / "c"
    Line().run(checkpoint)
    damage(checkpoint)
    with pytest.raises(ArtifactError, match=says) as caught:
        Line().run(checkpoint)
    assert f"delete {checkpoint} to begin anew" in caught.value.hint


def test_a_checkpoint_that_cannot_be_written_is_an_input_error(tmp_path: Path) -> None:
    write_atomically(tmp_path / "file", b"")
    with pytest.raises(InputFileError, match="cannot be written"):
        Line().run(tmp_path / "file" / "c")


@given(fraction=st.floats(0, 1), warmup=st.floats(0.05, 0.5))
def test_the_rate_stays_within_its_peak(fraction: float, warmup: float) -> None:
    assert 0 <= one_cycle(fraction, 2.0, warmup=warmup) <= 2.0


def test_the_rate_goes_up_and_then_down_to_nothing() -> None:
    rates = [one_cycle(step / 100, 1.0) for step in range(101)]
    top = rates.index(max(rates))
    assert top == 20
    assert rates[:21] == sorted(rates[:21])
    assert rates[20:] == sorted(rates[20:], reverse=True)
    assert rates[0] > 0
    assert rates[-1] == pytest.approx(0)


def test_the_rate_is_set_for_every_group() -> None:
    first, second = nn.Linear(1, 1), nn.Linear(1, 1)
    groups: list[dict[str, Any]] = [
        {"params": first.parameters()},
        {"params": second.parameters(), "lr": 0.5},
    ]
    optimizer = torch.optim.SGD(groups, lr=0.1)
    set_learning_rate(optimizer, 0.3)
    assert [group["lr"] for group in optimizer.param_groups] == [0.3, 0.3]


class Rates:
    rate = 0.1
    decay = 0.0


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("rate", 0.0, "`rate` is a positive number, not 0.0"),
        ("rate", -1.0, "`rate` is a positive number"),
        ("rate", math.nan, "`rate` is a positive number"),
        ("rate", math.inf, "`rate` is a positive number"),
        ("decay", -0.1, "`decay` is a number of at least 0, not -0.1"),
        ("decay", math.nan, "`decay` is a number of at least 0"),
    ],
)
def test_rates_that_no_optimizer_takes_are_refused(name: str, value: float, says: str) -> None:
    rates = Rates()
    check_rates(rates, positive=("rate",), weights=("decay",))
    setattr(rates, name, value)
    with pytest.raises(ConfigError, match=says):
        check_rates(rates, positive=("rate",), weights=("decay",))
