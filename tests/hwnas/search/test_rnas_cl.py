from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from hwnas.core.decoding import encode_json
from hwnas.core.errors import (
    BudgetError,
    ConfigError,
    DataError,
    LatencyTableError,
    TrainingDivergedError,
)
from hwnas.data.images import ImageData
from hwnas.data.sources import DataConfig
from hwnas.distill.tutors import fixed_tutors
from hwnas.latency.resources import SpaceCosts
from hwnas.search.budget import Budgets
from hwnas.search.derive import best_genotype
from hwnas.search.records import SearchRecord, read_search
from hwnas.search.rnas_cl import SearchConfig, SearchOutcome, search_supernet
from hwnas.search.steps import SearchSteps
from hwnas.space.channel.space import ChannelSpace
from hwnas.space.operators import macs_of_operator
from hwnas.training.processes import Processes

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from hwnas.core.progress import Progress
    from hwnas.distill.teacher import Teacher
    from hwnas.space.channel.spec import ChannelSpec
    from hwnas_profilers.table import LatencyTable
    from hwnas_profilers.workload import OperatorKey

    TableMaker = Callable[..., LatencyTable]

pytestmark = pytest.mark.usefixtures("one_thread")

CONFIG = SearchConfig(epochs=4, warmup_epochs=1, batch=32, attention_size=4)


class Searcher:
    """A small search: its space takes from 1 to about 2.5 times the fastest network's latency."""

    def __init__(
        self, spec: ChannelSpec, table_of: TableMaker, teacher: Teacher, data: ImageData
    ) -> None:
        def cost_us(key: OperatorKey) -> float:
            return 3.0 + macs_of_operator(key) / 1e3

        self.space = ChannelSpace(spec)
        table = table_of(self.space, cost_us)
        weighed = {
            key: replace(each, weights_bytes=64 + 4 * key.hidden * key.out_shape[0])
            for key, each in table.measurements.items()
        }
        self.costs = SpaceCosts(self.space, replace(table, measurements=weighed))
        self.latency = self.costs.latency
        self.teacher, self.data = teacher, data
        self.low_ms, self.high_ms = self.latency.range_ms()

    def budget(self, fraction: float) -> float:
        return self.low_ms + fraction * (self.high_ms - self.low_ms)

    def run(self, checkpoint: Path, config: SearchConfig = CONFIG, **changes: Any) -> SearchOutcome:
        given: dict[str, Any] = {
            "budgets": Budgets(latency_ms=self.budget(0.5)),
            "seed": 0,
            "inputs": {"table": "ab"},
            "data_config": DataConfig(),
            "data": self.data,
        } | changes
        return search_supernet(
            self.space, self.costs, self.teacher, given.pop("data"), given.pop("data_config"),
            config, checkpoint=checkpoint, **given,
        )  # fmt: skip

    def steps(self, config: SearchConfig, budgets: Budgets | None = None) -> SearchSteps:
        return SearchSteps(
            self.space, self.costs, self.teacher, self.data, DataConfig(), config,
            budgets or Budgets(latency_ms=self.budget(0.5)), seed=0,
            processes=Processes(accelerator="cpu"),
        )  # fmt: skip

    @property
    def even_ms(self) -> float:
        """Expected latency before anything is learned."""
        even = [torch.full((len(options),), 1 / len(options)) for options in self.space.options]
        return float(self.latency.expected_ms(even))


@pytest.fixture
def searcher(
    small_spec: ChannelSpec, table_of: TableMaker, small_teacher: Teacher, few_digits: ImageData
) -> Searcher:
    return Searcher(small_spec, table_of, small_teacher, few_digits)


def same_outcome(first: SearchOutcome, second: SearchOutcome) -> bool:
    states = (first.supernet.state_dict().values(), second.supernet.state_dict().values())
    return (
        all(torch.equal(a, b) for a, b in zip(*states, strict=True))
        and first.log_probabilities == second.log_probabilities
        and first.tutor_probabilities == second.tutor_probabilities
        and first.expected_ms == second.expected_ms
        and first.history == second.history
    )


# 3 steps in the first epoch, which only warms up, then 3 of weights and 2 of choices in each.
@pytest.mark.parametrize("step", [0, 2, 3, 7, 12, 17])
def test_an_interrupted_search_ends_in_the_same_numbers(
    searcher: Searcher,
    tmp_path: Path,
    interrupted_after: Callable[[int], Progress],
    step: int,
) -> None:
    whole = searcher.run(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        searcher.run(tmp_path / "cut", progress=interrupted_after(step))
    torch.manual_seed(step)  # the global generator must not matter
    assert same_outcome(searcher.run(tmp_path / "cut"), whole)


@pytest.mark.parametrize("gates", ["soft", "hard"])
def test_an_outcome_is_whole(searcher: Searcher, tmp_path: Path, gates: Any) -> None:
    outcome = searcher.run(tmp_path / "c", replace(CONFIG, gates=gates))
    for row, options in zip(outcome.log_probabilities, searcher.space.options, strict=True):
        assert len(row) == len(options)
        assert sum(map(math.exp, row)) == pytest.approx(1, abs=1e-5)
    assert len(outcome.tutor_probabilities) == len(outcome.supernet.tap_names)
    for row in outcome.tutor_probabilities:
        assert len(row) == len(searcher.teacher.layers)
        assert sum(row) == pytest.approx(1, abs=1e-5)
    probabilities = [torch.tensor(row).exp() for row in outcome.log_probabilities]
    assert outcome.expected_ms == pytest.approx(
        float(searcher.latency.expected_ms(probabilities)), rel=1e-5
    )
    assert searcher.low_ms <= outcome.expected_ms <= searcher.high_ms
    assert outcome.history[-1]["expected_ms"] == outcome.expected_ms
    scores = [np.array(row) for row in outcome.log_probabilities]
    genotype = best_genotype(searcher.costs, scores, Budgets(latency_ms=searcher.budget(0.5)))
    assert searcher.latency.predict_ms(genotype) <= searcher.budget(0.5)


def test_the_weights_are_trained_and_warmup_leaves_choices_alone(
    searcher: Searcher, tmp_path: Path
) -> None:
    config = replace(CONFIG, epochs=6, warmup_epochs=3, batch=16)
    history = searcher.run(tmp_path / "c", config).history
    assert history[-1]["loss"] < history[0]["loss"]
    even = sum(math.log(len(options)) for options in searcher.space.options) / 3
    for figures in history[:3]:
        assert "choice_loss" not in figures
        assert figures["entropy"] == pytest.approx(even, rel=1e-5)
        assert figures["expected_ms"] == pytest.approx(searcher.even_ms, rel=1e-5)
        assert figures["multiplier"] == 0
    for figures in history[3:]:
        assert figures["choice_loss"] > 0
        assert figures["entropy"] < even
    assert history[0]["temperature"] == CONFIG.temperature_start
    assert history[-1]["temperature"] == pytest.approx(CONFIG.temperature_end)


def test_the_rate_of_each_side_falls_over_its_own_steps(
    searcher: Searcher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[int, list[float]] = {}
    monkeypatch.setattr(
        "hwnas.search.steps.set_learning_rate",
        lambda optimizer, rate: seen.setdefault(id(optimizer), []).append(rate),
    )
    searcher.run(tmp_path / "c")
    weights, choices = seen.values()
    assert (len(weights), len(choices)) == (4 * 3, 3 * 2)
    for rates, peak in ((weights, CONFIG.learning_rate), (choices, CONFIG.choice_learning_rate)):
        done = np.arange(len(rates)) / len(rates)
        assert rates == pytest.approx(peak * 0.5 * (1 + np.cos(np.pi * done)))


LONGER = SearchConfig(
    epochs=16, warmup_epochs=1, batch=16, attention_size=4, choice_learning_rate=0.3
)


def test_a_tight_budget_ends_faster_than_a_loose_one(searcher: Searcher, tmp_path: Path) -> None:
    tight_ms = searcher.budget(0.15)
    tight = searcher.run(tmp_path / "tight", LONGER, budgets=Budgets(latency_ms=tight_ms))
    free = Budgets(latency_ms=searcher.high_ms * 2)
    loose = searcher.run(tmp_path / "loose", LONGER, budgets=free)
    assert searcher.even_ms > tight_ms  # it binds
    assert tight.expected_ms < loose.expected_ms
    assert tight.expected_ms == pytest.approx(tight_ms, rel=0.1)
    assert all(figures["multiplier"] == 0 for figures in loose.history)
    assert max(figures["multiplier"] for figures in tight.history) > 0


@pytest.mark.parametrize("latency_term", ["budget", "product"])
def test_a_budget_on_weights_is_held_whatever_the_latency_term(
    searcher: Searcher, tmp_path: Path, latency_term: Any
) -> None:
    ends = searcher.costs.weights_bytes.range()
    assert ends is not None
    bound_kib = (ends[0] + 0.15 * (ends[1] - ends[0])) / 1024
    asked = Budgets(latency_ms=searcher.high_ms * 2, weights_kib=bound_kib)
    config = replace(LONGER, latency_term=latency_term, product_beta=0.01)
    outcome = searcher.run(tmp_path / "c", config, budgets=asked)
    first = outcome.history[0]["expected_weights_kib"]
    assert first > bound_kib  # it binds
    assert outcome.expected["expected_weights_kib"] <= 1.05 * bound_kib
    assert outcome.history[-1]["expected_weights_kib"] == outcome.expected["expected_weights_kib"]
    assert max(figures["weights_multiplier"] for figures in outcome.history) > 0
    assert all(figures["multiplier"] == 0 for figures in outcome.history)


def test_a_budget_that_the_table_knows_nothing_of_is_refused_at_once(
    searcher: Searcher, tmp_path: Path
) -> None:
    asked = Budgets(latency_ms=searcher.high_ms, energy_mj=1.0)
    with pytest.raises(LatencyTableError, match="does not tell the energy"):
        searcher.run(tmp_path / "c", budgets=asked)
    assert list(tmp_path.iterdir()) == []


def test_the_papers_latency_term_lowers_the_expected_latency(
    searcher: Searcher, tmp_path: Path
) -> None:
    config = replace(LONGER, latency_term="product", tutors="none")
    outcome = searcher.run(tmp_path / "c", config)
    assert outcome.expected_ms < 0.95 * searcher.even_ms
    assert all(figures["multiplier"] == 0 for figures in outcome.history)


def test_the_seed_decides_everything(searcher: Searcher, tmp_path: Path) -> None:
    first, second = (searcher.run(tmp_path / name) for name in ("a", "b"))
    assert same_outcome(first, second)
    assert not same_outcome(first, searcher.run(tmp_path / "c", seed=1))


def test_the_teacher_is_not_moved(searcher: Searcher, tmp_path: Path) -> None:
    network = searcher.teacher.network
    before = {name: value.clone() for name, value in network.state_dict().items()}
    searcher.run(tmp_path / "c")
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_the_guard_of_the_test_split_works(few_digits: ImageData) -> None:
    with pytest.raises(AssertionError, match="the test split was touched"):
        len(few_digits.test)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"seed": 1}, "seed: 0 -> 1"),
        ({"budgets": Budgets(latency_ms=1.0)}, "budget_ms: .* -> 1.0"),
        ({"budgets": Budgets(latency_ms=1.0, weights_kib=90.0)}, "weights_kib: None -> 90.0"),
        ({"inputs": {"table": "cd"}}, "table: 'ab' -> 'cd'"),
        # Another split would choose on images that were trained on before.
        ({"data_config": DataConfig(seed=1)}, "data.seed: 0 -> 1"),
        ({"config": replace(CONFIG, gates="hard")}, "gates: 'soft' -> 'hard'"),
    ],
)
def test_a_checkpoint_of_another_search_is_refused(
    searcher: Searcher, tmp_path: Path, changes: dict[str, Any], says: str
) -> None:
    searcher.run(tmp_path / "c")
    with pytest.raises(ConfigError, match=says):
        searcher.run(tmp_path / "c", **changes)


def test_a_rate_too_high_is_found_out(searcher: Searcher, tmp_path: Path) -> None:
    with pytest.raises(TrainingDivergedError, match="search"):
        searcher.run(tmp_path / "c", replace(CONFIG, learning_rate=1e30))


def test_a_loss_that_breaks_late_keeps_what_was_good(
    searcher: Searcher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = searcher.run(tmp_path / "whole")
    observe = type(searcher.teacher).observe
    calls = 0

    def spoil(self: Teacher, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        nonlocal calls
        calls += 1
        logits, maps = observe(self, images)
        return (logits * math.nan if calls == 10 else logits), maps

    with monkeypatch.context() as patch:
        patch.setattr(type(searcher.teacher), "observe", spoil)
        with pytest.raises(TrainingDivergedError, match="loss of search is nan in epoch 3"):
            searcher.run(tmp_path / "c")
    assert same_outcome(searcher.run(tmp_path / "c"), whole)


def test_a_search_that_cannot_be_is_refused_before_it_begins(
    searcher: Searcher, tmp_path: Path
) -> None:
    with pytest.raises(BudgetError, match="no network meets"):
        searcher.run(tmp_path / "c", budgets=Budgets(latency_ms=searcher.low_ms / 2))
    one = ImageData(
        name="one",
        train=searcher.data.train,
        validation=searcher.data.validation.subset(1, torch.Generator()),
        test=searcher.data.train,
        class_names=searcher.data.class_names,
    )
    with pytest.raises(DataError, match="the validation split of one has 1 images"):
        searcher.run(tmp_path / "c", data=one)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"warmup_epochs": 30}, r"`warmup_epochs` \(30\) must leave some of the 30 `epochs`"),
        ({"warmup_epochs": -1}, "`warmup_epochs`"),
        ({"epochs": 0, "warmup_epochs": 0}, "`epochs`"),
        ({"batch": 1}, "`batch` is at least 2"),
        ({"attention_size": 0}, "`attention_size` at least 1"),
        ({"learning_rate": 0.0}, "`learning_rate` is a positive number"),
        ({"choice_learning_rate": float("nan")}, "`choice_learning_rate` is a positive number"),
        ({"temperature_end": 0.0}, "`temperature_end` is a positive number"),
        ({"product_alpha": -0.2}, "`product_alpha` is a positive number"),
        ({"weight_decay": -1.0}, "`weight_decay` is a number of at least 0"),
        ({"choice_weight_decay": -1.0}, "`choice_weight_decay` is a number of at least 0"),
        ({"attention_weight": float("nan")}, "`attention_weight` is a number of at least 0"),
        ({"attention_weight": 0.0}, "nothing would tell which tutors"),
        ({"kl_weight": -1.0}, "`kl_weight` is a number of at least 0, not -1.0"),
        ({"kl_weight": float("inf")}, "`kl_weight` is a number of at least 0"),
    ],
)
def test_settings_that_make_no_sense_are_refused(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        SearchConfig(**changes)


def test_a_record_survives_its_round_trip_and_names_the_tutors(
    searcher: Searcher, tmp_path: Path
) -> None:
    outcome = searcher.run(tmp_path / "c")
    record = SearchRecord(
        space=searcher.space.spec,
        target="onnxruntime-cpu",
        budget_ms=1.0,
        expected_ms=outcome.expected_ms,
        budgets=Budgets(latency_ms=1.0, memory_kib=2.0),
        expected_forbidden_operators=0.5,
        log_probabilities=outcome.log_probabilities,
        tutor_probabilities=outcome.tutor_probabilities,
        student_layers=outcome.supernet.tap_names,
        teacher_layers=searcher.teacher.layers,
        attention_size=4,
        seed=0,
    )
    path = tmp_path / "search.json"
    path.write_bytes(encode_json(record))
    assert read_search(path) == record
    assert len(record.tutor_weights) == len(record.student_layers)
    for weights, row in zip(record.tutor_weights, record.tutor_probabilities, strict=True):
        assert row[weights.index(1.0)] == max(row)
        assert sum(weights) == 1.0


@pytest.mark.parametrize("selection", ["none", "uniform", "random", "depth", "last"])
def test_a_selection_that_is_not_searched_stays_as_it_is(
    searcher: Searcher, tmp_path: Path, selection: Any
) -> None:
    config = replace(CONFIG, tutors=selection)
    outcome = searcher.run(tmp_path / "c", config=config)
    students, teachers = len(outcome.supernet.tap_names), len(searcher.teacher.layers)
    draw = torch.Generator().manual_seed(0)
    fixed = fixed_tutors(selection, students, teachers, draw)
    assert outcome.tutor_probabilities == tuple(tuple(row) for row in fixed.tolist())
    # The widths are learned all the same.
    assert any(abs(row[0] - row[1]) > 1e-3 for row in outcome.log_probabilities)


def test_without_kl_and_tutors_a_search_goes_by_labels_alone(
    searcher: Searcher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("the teacher was run")

    monkeypatch.setattr(type(searcher.teacher), "logits", refuse)
    monkeypatch.setattr(type(searcher.teacher), "observe", refuse)
    config = replace(CONFIG, tutors="none", kl_weight=0.0)
    images, labels = searcher.data.train.pixels(), searcher.data.train.labels
    # A mixture has no noise in it: what a first step computes can be written down.
    steps = searcher.steps(replace(config, gates="mixture"))
    even = [torch.full((len(options),), 1 / len(options)) for options in searcher.space.options]
    with torch.no_grad():
        logits = steps.supernet.train()(images, even).logits
        expected = torch.nn.functional.cross_entropy(logits, labels)
    given = (images, labels, len(labels), 1.0, torch.Generator().manual_seed(0))
    assert float(steps.step_weights(*given)) == pytest.approx(float(expected), rel=1e-5)
    # Nor do the choices of a whole search ask for it.
    outcome = searcher.run(tmp_path / "c", config)
    assert any(abs(row[0] - row[1]) > 1e-3 for row in outcome.log_probabilities)


@pytest.mark.parametrize("tutors", ["none", "searched"])
def test_the_kl_is_weighed_in_steps_of_weights_and_of_choices(
    searcher: Searcher, tutors: Any
) -> None:
    images, labels = searcher.data.train.pixels(), searcher.data.train.labels
    free = Budgets(latency_ms=2 * searcher.high_ms)  # nothing is added for latency

    def first_losses(weight: float) -> torch.Tensor:
        config = replace(CONFIG, tutors=tutors, kl_weight=weight)
        losses = []
        for kind in ("step_weights", "step_choices"):
            step = getattr(searcher.steps(config, budgets=free), kind)
            generator = torch.Generator().manual_seed(0)
            losses.append(step(images, labels, len(labels), 1.0, generator))
        return torch.stack(losses)

    none, one, three = (first_losses(weight) for weight in (0.0, 1.0, 3.0))
    assert (one > none + 1e-3).all()
    torch.testing.assert_close(three - none, 3 * (one - none), rtol=1e-4, atol=1e-5)


def test_bfloat16_and_plain_layout_search_too(searcher: Searcher, tmp_path: Path) -> None:
    variants: list[dict[str, Any]] = [{}, {"channels_last": False}, {"precision": "bf16"}]
    losses = [
        searcher.run(tmp_path / f"{index}", config=replace(CONFIG, **settings)).history[-1]["loss"]
        for index, settings in enumerate(variants)
    ]
    assert losses[1] == pytest.approx(losses[0], rel=0.05)
    assert losses[2] == pytest.approx(losses[0], rel=0.1)
    assert losses[2] != losses[0]


def test_the_log_is_told_of_every_epoch(searcher: Searcher, tmp_path: Path) -> None:
    told: list[tuple[str, int, set[str]]] = []

    class Log:
        def log(self, name: str, figures: Mapping[str, float], *, epoch: int) -> None:
            told.append((name, epoch, set(figures)))

    outcome = searcher.run(tmp_path / "c", config=CONFIG, log=Log())
    assert [(name, epoch) for name, epoch, _ in told] == [
        ("search", epoch + 1) for epoch in range(len(outcome.history))
    ]
    assert told[-1][2] == set(outcome.history[-1])


def test_a_process_without_images_draws_what_the_others_draw(
    searcher: Searcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = searcher.steps(CONFIG)
    steps.supernet.eval()  # alone there is no batch to normalize over
    monkeypatch.setattr(steps.supernet, "train", lambda: steps.supernet)
    states = []
    for count in (4, 0):
        generator = torch.Generator().manual_seed(7)
        images, labels = searcher.data.train.pixels()[:count], searcher.data.train.labels[:count]
        loss = steps.step_weights(images, labels, 4, 1.0, generator)
        assert math.isfinite(float(loss))
        states.append(generator.get_state())
    assert torch.equal(*states)
