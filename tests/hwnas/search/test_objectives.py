"""What robustness objectives do to the steps of a search."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import nn

from hwnas.core.errors import ConfigError, TrainingDivergedError, UnboundedOperationError
from hwnas.data.sources import DataConfig
from hwnas.latency.resources import SpaceCosts
from hwnas.robustness.bounds import margin_lower_bounds
from hwnas.robustness.jacobian import jacobian_bound, logit_scale
from hwnas.robustness.threat import parse_eps
from hwnas.search.budget import Budgets
from hwnas.search.objective_term import ObjectiveTerm
from hwnas.search.objectives import objective_of, signed_log
from hwnas.search.rnas_cl import SearchConfig, search_supernet
from hwnas.search.steps import SearchSteps
from hwnas.space.cells.space import CellSpace
from hwnas.space.cells.spec import CellSpec
from hwnas.space.channel.space import ChannelSpace
from hwnas.space.mbconv.space import MBConvSpace
from hwnas.space.mbconv.spec import MBConvSpec, MBConvStage
from hwnas.space.operators import macs_of_operator
from hwnas.training.processes import Processes

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from torch import Tensor

    from hwnas.core.progress import Progress
    from hwnas.data.images import ImageData
    from hwnas.distill.teacher import Teacher
    from hwnas.search.rnas_cl import SearchOutcome
    from hwnas.space.chain_space import ChainSpace
    from hwnas.space.channel.spec import ChannelSpec
    from hwnas.space.supernet import Supernet
    from hwnas_profilers.table import LatencyTable

    TableMaker = Callable[..., LatencyTable]

pytestmark = pytest.mark.usefixtures("one_thread")

PLAIN = SearchConfig(epochs=3, warmup_epochs=1, batch=32, attention_size=4, tutors="none")
OBJECTIVES: list[dict[str, Any]] = [
    {"objective": "jacobian"},
    {"objective": "jacobian", "objective_norm": "l2", "objective_classes": 0},
    {"objective": "certified"},
    {"objective": "combined", "objective_every": 2},
]


def with_objective(**settings: Any) -> SearchConfig:
    return replace(PLAIN, objective_images=6, **{"objective_every": 1, **settings})


class Searcher:
    """A search in a small space, whole or step by step."""

    def __init__(
        self, spec: ChannelSpec, table_of: TableMaker, teacher: Teacher, data: ImageData
    ) -> None:
        self.space = ChannelSpace(spec)
        self.costs = SpaceCosts(
            self.space, table_of(self.space, lambda key: 3.0 + macs_of_operator(key) / 1e3)
        )
        self.teacher, self.data = teacher, data
        low, high = self.costs.latency.range_ms()
        self.budgets = Budgets(latency_ms=low + 0.5 * (high - low))

    def run(self, checkpoint: Path, config: SearchConfig, **changes: Any) -> SearchOutcome:
        given: dict[str, Any] = {"seed": 0, "inputs": {}} | changes
        return search_supernet(
            self.space, self.costs, self.teacher, self.data, DataConfig(), config,
            budgets=self.budgets, checkpoint=checkpoint, **given,
        )  # fmt: skip

    def steps(self, config: SearchConfig) -> SearchSteps:
        return SearchSteps(
            self.space, self.costs, self.teacher, self.data, DataConfig(), config, self.budgets,
            seed=0, processes=Processes(accelerator="cpu"),
        )  # fmt: skip

    def batch(self, count: int = 32) -> tuple[Tensor, Tensor, int]:
        images = self.data.validation.pixels()[:count]
        return images, self.data.validation.labels[:count], count


@pytest.fixture
def searcher(
    small_spec: ChannelSpec, table_of: TableMaker, small_teacher: Teacher, few_digits: ImageData
) -> Searcher:
    return Searcher(small_spec, table_of, small_teacher, few_digits)


def states(module: nn.Module) -> tuple[dict[str, Tensor], list[bool]]:
    kept = {name: value.clone() for name, value in module.state_dict().items()}
    return kept, [part.training for part in module.modules()]


def soft_gates(space: ChainSpace, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.softmax(torch.randn(len(options), generator=generator), dim=0).requires_grad_()
        for options in space.options
    ]


def warmed_up(space: ChainSpace) -> Supernet:
    """A supernet whose running statistics are of images."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        supernet = space.supernet()
        with torch.no_grad():
            for _ in range(5):
                supernet(torch.rand(16, *space.spec.image_shape), soft_gates(space), observe=False)
    return supernet.requires_grad_(requires_grad=False)


# The interface, on every kind of space


SPACES: dict[str, Callable[[], ChainSpace]] = {
    "mbconv": lambda: MBConvSpace(
        MBConvSpec(
            name="small mbconv",
            image_shape=(2, 9, 7),
            classes=4,
            stem=4,
            stem_stride=2,
            stages=(MBConvStage(blocks=2, widths=(8, 4)),),
            kernels=(3, 5),
            expansions=(1, 3),
        )
    ),
    "cells": lambda: CellSpace(
        CellSpec(name="small", image_shape=(2, 8, 8), classes=4, cells=3, channels=4, nodes=2)
    ),
}


@pytest.mark.parametrize("settings", OBJECTIVES[:1] + OBJECTIVES[2:])
@pytest.mark.parametrize("kind", ["channel", *SPACES])
def test_every_space_is_rated_with_gradients_to_every_block(
    kind: str, settings: dict[str, Any], small_spec: ChannelSpec
) -> None:
    space = ChannelSpace(small_spec) if kind == "channel" else SPACES[kind]()
    supernet = warmed_up(space)
    before = states(supernet)
    # With a small ball bounds are of a size that every gate is seen in.
    config = with_objective(**settings, channels_last=False)
    term = ObjectiveTerm(config, supernet, space.spec.classes, Processes(accelerator="cpu"))
    gates = soft_gates(space)
    images, labels = torch.rand(8, *space.spec.image_shape), torch.arange(8) % 4
    reward = term.reward(images, labels, 8, gates, torch.Generator().manual_seed(0))
    assert reward is not None
    gradients = torch.autograd.grad(reward, gates)
    assert all(gradient.isfinite().all() for gradient in gradients)
    assert all(gradient.abs().sum() > 0 for gradient in gradients)
    after = states(supernet)
    assert before[1] == after[1]
    assert all(torch.equal(value, after[0][name]) for name, value in before[0].items())


def test_ratings_are_what_they_say(small_spec: ChannelSpec) -> None:
    space = ChannelSpace(small_spec)
    supernet, gates = warmed_up(space).eval(), soft_gates(space)
    images, labels = torch.rand(5, *space.spec.image_shape), torch.arange(5)

    def forward(points: Any) -> Any:
        return supernet(points, gates, observe=False).logits

    eps = parse_eps("1/2550")
    scale = logit_scale(forward(images))
    found = {}
    for name in ("jacobian", "certified", "combined"):
        config = with_objective(objective=name)
        objective = objective_of(config)
        assert objective is not None
        rated = objective(forward, images, labels, eps=eps, rows=None)
        torch.testing.assert_close(rated.logits, forward(images))
        found[name] = rated.by_scale(scale)
    torch.testing.assert_close(found["jacobian"].mean(), jacobian_bound(forward, images))
    margins = margin_lower_bounds(forward, images, labels, eps=eps, method="ibp")
    smallest = torch.stack(
        [row[torch.arange(10) != label].min() for row, label in zip(margins, labels, strict=True)]
    )
    torch.testing.assert_close(found["certified"], signed_log(smallest / scale))
    torch.testing.assert_close(found["combined"], found["jacobian"] + found["certified"])
    # A bound holds for the image itself.
    logits = forward(images)
    gaps = logits.gather(1, labels[:, None]) - logits
    assert (margins <= gaps + 1e-4).all()


@pytest.mark.parametrize("settings", OBJECTIVES)
def test_the_scale_of_logits_changes_no_objective(
    settings: dict[str, Any], small_spec: ChannelSpec
) -> None:
    """A search that could shrink logits would gain nothing: no value, and no gradient."""
    space = ChannelSpace(small_spec)
    supernet, gates = warmed_up(space), soft_gates(space)
    images, labels = torch.rand(8, *space.spec.image_shape), torch.arange(8)
    rewards = []
    for factor in (1.0, 0.01):
        scaled = copy.deepcopy(supernet)
        head = scaled.get_submodule("network.head.classifier")
        assert isinstance(head, nn.Linear)
        with torch.no_grad():
            head.weight.mul_(factor)
            head.bias.mul_(factor)
        config = with_objective(**settings)
        term = ObjectiveTerm(config, scaled, 10, Processes(accelerator="cpu"))
        reward = term.reward(images, labels, 8, gates, torch.Generator().manual_seed(0))
        assert reward is not None
        rewards.append((reward, torch.autograd.grad(reward, gates)))
    torch.testing.assert_close(rewards[1], rewards[0], rtol=1e-3, atol=1e-6)


def test_the_signed_logarithm_keeps_order_and_gradients_however_large() -> None:
    values = torch.tensor([-1e30, -1e8, -2.0, -1e-6, 1e-6, 3.0], requires_grad=True)
    logs = signed_log(values)
    assert (logs.diff() > 0).all()
    assert float(logs[3].detach()) == pytest.approx(-1e-6)
    (gradient,) = torch.autograd.grad((logs * values.detach().abs()).sum(), values)
    assert gradient[0] == pytest.approx(1.0)  # asinh has 0 here


# In a step


def test_the_objective_reaches_the_choices_alone_and_through_the_same_gates(
    searcher: Searcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = searcher.steps(with_objective(objective="jacobian"))
    steps.step_weights(*searcher.batch(), 1.0, torch.Generator().manual_seed(0))
    seen: list[tuple[bool, bool, list[Tensor]]] = []
    forward = steps.supernet.forward

    def watched(images: Tensor, gates: list[Tensor], *, observe: bool = True) -> Any:
        seen.append((steps.supernet.training, torch.is_autocast_enabled("cpu"), gates))
        return forward(images, gates, observe=observe)

    monkeypatch.setattr(steps.supernet, "forward", watched)
    before = {name: value.clone() for name, value in steps.supernet.named_parameters()}
    steps.step_choices(*searcher.batch(), 1.0, torch.Generator().manual_seed(0))
    assert [training for training, _, _ in seen] == [True, False]
    assert all(one is other for one, other in zip(seen[0][2], seen[1][2], strict=True))
    assert steps.supernet.training
    for name, value in steps.supernet.named_parameters():
        assert torch.equal(value, before[name])


def test_gradients_are_those_of_the_plain_step_less_the_weighted_objective(
    searcher: Searcher,
) -> None:
    """Written down anew: loss - gamma R, with R of the rated images in eval mode."""
    config = with_objective(objective="jacobian", objective_classes=0, objective_weight=0.3)
    gradients = []
    for each in (PLAIN, config):
        steps = searcher.steps(each)
        steps.step_weights(*searcher.batch(), 1.0, torch.Generator().manual_seed(0))
        steps.step_choices(*searcher.batch(), 1.0, torch.Generator().manual_seed(1))
        gradients.append([part.grad.clone() for part in steps.choices.architecture])
    steps = searcher.steps(PLAIN)
    steps.step_weights(*searcher.batch(), 1.0, torch.Generator().manual_seed(0))
    drawn = steps._drawn(1.0, torch.Generator().manual_seed(1))
    steps._learn(weights=False)
    images, _, total = searcher.batch()
    drawn = steps._drawn(1.0, torch.Generator().manual_seed(1))
    # The plain step moves the running statistics first, as the objective's step does.
    with torch.no_grad():
        steps.supernet(images, drawn.gates)
    rated = images[[place * total // 6 for place in range(6)]]
    steps.supernet.eval()
    bound = jacobian_bound(
        lambda points: steps.supernet(points, drawn.gates, observe=False).logits, rated
    )
    own = torch.autograd.grad(bound, list(steps.choices.architecture))
    for plain, with_term, added in zip(*gradients, own, strict=True):
        torch.testing.assert_close(with_term, plain - 0.3 * added, rtol=1e-3, atol=1e-6)
        assert (0.3 * added).abs().max() > 1e-5


def test_weight_and_eps_grow_from_the_end_of_the_warmup(searcher: Searcher) -> None:
    config = with_objective(objective="certified", objective_ramp=0.5, objective_every=3)
    steps = searcher.steps(config)
    images, labels, total = searcher.batch()
    gates = soft_gates(searcher.space)
    eps: list[float] = []
    weights = []
    for step in range(12):
        steps.objective.begin(step / 12, step)
        reward = steps.objective.reward(images, labels, total, gates, torch.Generator())
        value = steps.objective.figures().get("objective")
        assert (reward is None) == (value is None)
        weights.append(0.0 if reward is None or not value else float(reward.detach()) / value)
        if value is not None:
            eps.append(value)
    # Every third step acts, with three times the weight; the first has none of it yet.
    expected = [0.0] * 12
    expected[3], expected[6], expected[9] = 0.5 * 0.03, 0.03, 0.03
    assert weights == pytest.approx(expected, rel=1e-5)
    assert eps[0] > eps[1]  # a larger ball has a lower bound
    assert eps[1] == eps[2]


def test_a_batch_shared_by_processes_has_the_gradient_of_the_whole(searcher: Searcher) -> None:
    """Two processes of a made-up group: the mean of what they compute is what one computes."""

    class Half:
        """One of two processes; `mean` is told what the other one would say."""

        count = 2

        def __init__(self, rank: int, means: list[Tensor]) -> None:
            self.rank, self.means = rank, list(means)
            self.own: list[torch.Tensor] = []

        def share(self, tensor: Tensor) -> Tensor:
            return tensor.tensor_split([7])[self.rank]  # of parts that are not of one size

        def mean(self, tensor: Tensor) -> Tensor:
            self.own.append(tensor.detach().clone())
            return self.means.pop(0) if self.means else tensor.detach()

    supernet = warmed_up(searcher.space)
    images, labels, total = searcher.batch(10)
    for settings in OBJECTIVES:
        config = with_objective(**settings)
        gates = soft_gates(searcher.space)
        whole_term = ObjectiveTerm(config, supernet, 10, Processes(accelerator="cpu"))
        whole = whole_term.reward(images, labels, total, gates, torch.Generator().manual_seed(3))
        assert whole is not None
        expected = torch.autograd.grad(whole, gates)
        means: list[Tensor] = []
        for _ in range(4):  # what is exchanged third depends on what was exchanged before
            halves = [Half(rank, means) for rank in (0, 1)]
            parts = []
            for half in halves:
                term = ObjectiveTerm(config, supernet, 10, half)  # type: ignore[arg-type]
                part = term.reward(
                    half.share(images), half.share(labels), total, gates,
                    torch.Generator().manual_seed(3),
                )  # fmt: skip
                assert part is not None
                parts.append(part)
            means = [(one + two) / 2 for one, two in zip(*(h.own for h in halves), strict=True)]
        found = [torch.autograd.grad(part, gates) for part in parts]
        for one, two, both in zip(*found, expected, strict=True):
            torch.testing.assert_close((one + two) / 2, both, rtol=1e-3, atol=1e-6)
        for part in parts:
            torch.testing.assert_close(part, whole, rtol=1e-4, atol=1e-7)


# In a search


@pytest.mark.parametrize("settings", [{"precision": "bf16"}, {"gates": "hard"}])
def test_a_search_with_an_objective_tells_its_figure_and_ends_whole(
    searcher: Searcher, tmp_path: Path, settings: dict[str, Any]
) -> None:
    config = with_objective(objective="combined", **settings)
    outcome = searcher.run(tmp_path / "c", config)
    assert "objective" not in outcome.history[0]  # the warm-up has no such term
    assert all(math.isfinite(figures["objective"]) for figures in outcome.history[1:])
    assert all(figures["objective"] < 0 for figures in outcome.history[1:])
    plain = searcher.run(tmp_path / "p", replace(PLAIN, **settings))
    assert plain.history[0] == outcome.history[0]
    assert plain.log_probabilities != outcome.log_probabilities


@pytest.mark.parametrize("objective", ["jacobian", "certified"])
def test_a_strong_objective_is_raised_and_the_budget_is_held(
    searcher: Searcher, objective: Any
) -> None:
    """From the same weights, by steps of the choices alone."""
    longer = replace(PLAIN, choice_learning_rate=0.3)
    strong = replace(longer, objective=objective, objective_weight=3.0, objective_images=32)
    rated = []
    for config in (longer, strong):
        steps = searcher.steps(config)
        generator = torch.Generator().manual_seed(0)
        for _ in range(8):
            steps.step_weights(*searcher.batch(), 1.0, generator)
        generator.manual_seed(1)
        for _ in range(25):
            steps.step_choices(*searcher.batch(), 1.0, generator)
        gates = [each.detach() for each in steps.choices.probabilities()]
        expected_ms = float(searcher.costs.latency.expected_ms(gates))
        assert expected_ms <= 1.1 * searcher.budgets.latency_ms
        term = ObjectiveTerm(strong, steps.supernet, 10, steps.processes)
        term.reward(*searcher.batch(), gates, torch.Generator().manual_seed(2))
        rated.append(term.figures()["objective"])
    assert rated[1] > rated[0] + 0.02 * abs(rated[0])


@pytest.mark.parametrize("step", [6, 9])
def test_an_interrupted_search_with_an_objective_ends_in_the_same_numbers(
    searcher: Searcher,
    tmp_path: Path,
    interrupted_after: Callable[[int], Progress],
    step: int,
) -> None:
    config = with_objective(objective="combined", objective_every=2)
    whole = searcher.run(tmp_path / "whole", config)
    with pytest.raises(KeyboardInterrupt):
        searcher.run(tmp_path / "cut", config, progress=interrupted_after(step))
    cut = searcher.run(tmp_path / "cut", config)
    assert cut.history == whole.history
    assert cut.log_probabilities == whole.log_probabilities


# What is refused


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"objective_weight": 0.1}, "`objective_weight` is given, but `objective` is none"),
        ({"objective_images": 9}, "`objective_images` is given, but `objective` is none"),
        ({"objective": "jacobian", "objective_weight": 0.0}, "`objective_weight` is a positive"),
        ({"objective": "jacobian", "objective_weight": math.nan}, "`objective_weight`"),
        ({"objective": "jacobian", "objective_images": 65}, r"between 1 and `batch` \(64\)"),
        ({"objective": "jacobian", "objective_images": 0}, "`objective_images`"),
        ({"objective": "jacobian", "objective_every": 0}, "`objective_every` is at least 1"),
        ({"objective": "jacobian", "objective_ramp": 1.5}, "`objective_ramp` is a share"),
        ({"objective": "jacobian", "objective_classes": -1}, "`objective_classes` is at least 0"),
        ({"objective": "jacobian", "objective_eps": 0.1}, "setting of certified and combined"),
        ({"objective": "jacobian", "objective_bound": "crown-ibp"}, "`objective_bound`"),
        ({"objective": "certified", "objective_classes": 2}, "setting of jacobian and combined"),
        ({"objective": "certified", "objective_norm": "l2"}, "`objective_norm`"),
        ({"objective": "combined", "objective_norm": "l2"}, "`objective_norm`"),
        ({"objective": "certified", "objective_eps": 0.0}, "`objective_eps` is 0"),
        ({"objective": "certified", "objective_eps": 8}, "not in pixel units"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(
    changes: dict[str, Any], says: str
) -> None:
    with pytest.raises(ConfigError, match=says):
        SearchConfig(**changes)


def test_more_rows_than_classes_are_refused(searcher: Searcher) -> None:
    with pytest.raises(ConfigError, match="`objective_classes` is 11, but there are 10 classes"):
        searcher.steps(with_objective(objective="jacobian", objective_classes=11))


class Once(torch.autograd.Function):
    """What torch can differentiate once, and no bound is known of."""

    @staticmethod
    def forward(context: Any, features: Tensor) -> Tensor:
        return features * 1.0

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(context: Any, gradient: Tensor) -> Tensor:
        return gradient


@pytest.mark.parametrize(
    ("objective", "error", "says"),
    [
        ("jacobian", ConfigError, "cannot differentiate twice"),
        ("certified", UnboundedOperationError, "needs bounds of all that small runs"),
    ],
)
def test_a_space_that_cannot_be_rated_is_refused_before_the_search_begins(
    searcher: Searcher,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    objective: Any,
    error: type[Exception],
    says: str,
) -> None:
    build = searcher.space.supernet

    def strange() -> Supernet:
        supernet = build()
        step: Any = torch.special.i0e if objective == "certified" else Once.apply
        conv = supernet.get_submodule("network.blocks.1.project.conv")
        conv.register_forward_hook(lambda *passed: step(passed[-1]))
        return supernet

    monkeypatch.setattr(searcher.space, "supernet", strange)
    with pytest.raises(error, match=says):
        searcher.run(tmp_path / "c", with_objective(objective=objective))
    assert list(tmp_path.iterdir()) == []


def test_bounds_that_overflow_are_named(searcher: Searcher) -> None:
    steps = searcher.steps(with_objective(objective="certified"))
    with torch.no_grad():
        for part in steps.supernet.modules():
            if isinstance(part, nn.BatchNorm2d):
                part.weight.fill_(1e12)
    with pytest.raises(TrainingDivergedError, match="bounds multiply layer by layer"):
        steps.objective.reward(*searcher.batch(), soft_gates(searcher.space), torch.Generator())
