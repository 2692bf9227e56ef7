"""Robust training of a supernet's weights."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

import pytest
import torch
from torch import nn
from torch.nn import functional

from hwnas.core.errors import ConfigError
from hwnas.data.sources import DataConfig
from hwnas.latency.resources import SpaceCosts
from hwnas.robustness.pgd import perturb
from hwnas.robustness.threat import Eps, ThreatModel
from hwnas.search.budget import Budgets
from hwnas.search.rnas_cl import SearchConfig, search_supernet
from hwnas.search.robust_pass import attack_generator, held_statistics, robust_pass
from hwnas.search.steps import SearchSteps
from hwnas.space.channel.space import ChannelSpace
from hwnas.space.operators import macs_of_operator
from hwnas.training.processes import Processes
from hwnas.training.robust import ROBUST_METHODS, TAKES_BOTH, RobustMethod, RobustSettings

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from torch import Tensor

    from hwnas.core.progress import Progress
    from hwnas.data.images import ImageData
    from hwnas.distill.teacher import Teacher
    from hwnas.search.rnas_cl import SearchOutcome
    from hwnas.space.channel.spec import ChannelSpec
    from hwnas_profilers.table import LatencyTable

pytestmark = pytest.mark.usefixtures("one_thread")

CONFIG = SearchConfig(epochs=2, warmup_epochs=1, batch=32, attention_size=4, attack_steps=2)
EPS = Eps(0.1)
METHODS = [cast("RobustMethod", method) for method in ROBUST_METHODS if method != "none"]


class Searcher:
    def __init__(
        self,
        spec: ChannelSpec,
        table_of: Callable[..., LatencyTable],
        teacher: Teacher,
        data: ImageData,
    ) -> None:
        self.space = ChannelSpace(spec)
        table = table_of(self.space, lambda key: 3.0 + macs_of_operator(key) / 1e3)
        self.costs = SpaceCosts(self.space, table)
        self.teacher, self.data = teacher, data
        self.budgets = Budgets(latency_ms=self.costs.latency.range_ms()[1])

    def run(
        self, checkpoint: Path, config: SearchConfig, eps: float = EPS, **given: Any
    ) -> SearchOutcome:
        return search_supernet(
            self.space, self.costs, self.teacher, self.data, DataConfig(), config,
            budgets=self.budgets, seed=0, checkpoint=checkpoint, inputs={},
            threat=ThreatModel(eps=eps), **given,
        )  # fmt: skip

    def steps(self, config: SearchConfig) -> SearchSteps:
        return SearchSteps(
            self.space, self.costs, self.teacher, self.data, DataConfig(), config, self.budgets,
            seed=0, processes=Processes(accelerator="cpu"), eps=EPS,
        )  # fmt: skip

    def batch(self, count: int = 32) -> tuple[Tensor, Tensor, int]:
        images = self.data.train.pixels()[:count]
        return images, self.data.train.labels[:count], count


@pytest.fixture
def searcher(
    small_spec: ChannelSpec,
    table_of: Callable[..., LatencyTable],
    small_teacher: Teacher,
    few_digits: ImageData,
) -> Searcher:
    return Searcher(small_spec, table_of, small_teacher, few_digits)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_trains_a_supernet_with_its_tutors(
    searcher: Searcher, tmp_path: Path, method: RobustMethod
) -> None:
    outcome = searcher.run(tmp_path / "c", replace(CONFIG, robust=method))
    assert all(math.isfinite(figures["loss"]) for figures in outcome.history)
    harder = searcher.run(tmp_path / "d", replace(CONFIG, robust=method), eps=0.3)
    # The first epoch's loss alone tells that the perturbations are of the threat's size.
    assert harder.history[0]["loss"] != outcome.history[0]["loss"]
    # The tutors are chosen.
    assert max(max(row) for row in outcome.tutor_probabilities) > 1 / len(searcher.teacher.layers)


@pytest.mark.parametrize("method", ["pgd-at", "trades"])
def test_robust_weights_lose_less_to_an_attack(searcher: Searcher, method: RobustMethod) -> None:
    """On the images that they were trained on: this is about what is learned."""
    lost = []
    images, labels, count = searcher.batch(64)
    gates = [torch.full((len(options),), 1 / len(options)) for options in searcher.space.options]
    for each in ("none", method):
        config = replace(CONFIG, robust=each, tutors="none")
        steps = searcher.steps(config)
        generator = torch.Generator().manual_seed(0)
        for _ in range(40):
            steps.step_weights(images, labels, count, 5.0, generator)
        steps.supernet.eval()

        def forward(points: Tensor, steps: SearchSteps = steps) -> Tensor:
            logits: Tensor = steps.supernet(points, gates, observe=False).logits
            return logits

        attacked = perturb(
            forward, images, labels, eps=EPS, steps=10, generator=torch.Generator().manual_seed(1)
        )
        with torch.no_grad():
            wrong = forward(attacked).argmax(1) != labels
        lost.append(float(wrong.float().mean()))
    assert lost[1] < lost[0] - 0.1


def test_an_attack_moves_no_statistics(searcher: Searcher) -> None:
    steps = searcher.steps(replace(CONFIG, robust="pgd-at"))
    gates = [torch.full((len(options),), 1 / len(options)) for options in searcher.space.options]
    images = searcher.batch()[0]
    before = {name: value.clone() for name, value in steps.supernet.state_dict().items()}
    steps.supernet.train()
    with held_statistics(steps.supernet):
        held = steps.supernet(images, gates).logits
    for name, value in steps.supernet.state_dict().items():
        assert torch.equal(value, before[name]), name
    # They are the batch's own that it sees, as in training.
    torch.testing.assert_close(held, steps.supernet(images, gates).logits)
    moved = steps.supernet.state_dict()
    assert any(not torch.equal(value, before[name]) for name, value in moved.items())


@pytest.mark.parametrize("method", METHODS)
def test_a_step_moves_statistics_once_whatever_the_attack_runs(
    searcher: Searcher, method: RobustMethod
) -> None:
    steps = searcher.steps(replace(CONFIG, robust=method))
    steps.step_weights(*searcher.batch(), 1.0, torch.Generator().manual_seed(0))
    counts = {
        int(part.num_batches_tracked)
        for part in steps.supernet.modules()
        if isinstance(part, nn.BatchNorm2d) and part.num_batches_tracked is not None
    }
    assert counts == {1}


@pytest.mark.parametrize("method", METHODS)
def test_energies_are_of_as_many_images_as_there_are_and_of_clean_ones_where_run(
    method: RobustMethod,
) -> None:
    images, labels = torch.rand(3, 1, 4, 4), torch.tensor([0, 1, 0])
    weight = torch.ones(16, 2, requires_grad=True)

    def run(images: Tensor, *, trained: bool) -> tuple[Tensor, tuple[Tensor, ...]]:
        return images.flatten(1) @ weight, (images[:, 0],) if trained else ()

    losses, energies = robust_pass(
        method,
        run,
        nn.Identity(),
        images,
        labels,
        torch.rand(3, 2),
        settings=RobustSettings(),
        eps=EPS,
        generator=torch.Generator().manual_seed(0),
    )
    assert losses.shape == (3,)
    (energy,) = energies
    assert energy.shape == (3, 4, 4)
    assert torch.equal(energy, images[:, 0]) == (method in TAKES_BOTH)


def test_noise_of_an_image_does_not_depend_on_how_many_share_the_batch() -> None:
    class Share:
        def __init__(self, count: int, rank: int) -> None:
            self.count, self.rank = count, rank

        def share(self, tensor: Tensor) -> Tensor:
            return tensor.tensor_split(self.count)[self.rank]

    images = torch.rand(7, 2, 5, 3).contiguous(memory_format=torch.channels_last)

    def noise(count: int, rank: int) -> Tensor:
        processes = Share(count, rank)
        own = processes.share(images)
        generator = attack_generator(5, own, len(images), cast("Any", processes))
        return torch.empty_like(own).uniform_(generator=generator)

    whole = noise(1, 0)
    for count in (2, 3, 9):  # of nine, two have no image
        parts = torch.cat([noise(count, rank) for rank in range(count)])
        assert torch.equal(parts, whole)


@pytest.mark.parametrize("method", ["none", "fast-at", "rslad"])
def test_a_process_without_images_takes_part(searcher: Searcher, method: RobustMethod) -> None:
    steps = searcher.steps(replace(CONFIG, robust=method))
    images, labels, _ = searcher.batch(4)
    steps.step_weights(images, labels, 4, 1.0, torch.Generator().manual_seed(7))
    generators = [torch.Generator().manual_seed(7) for _ in range(2)]
    for count, generator in zip((4, 0), generators, strict=True):
        drawn = steps._drawn(1.0, generator)
        steps._learn(weights=True)
        steps.supernet.eval()  # alone there is no batch to normalize over
        robust = None
        if method != "none":
            seed = int(torch.randint(2**62, (), generator=generator))
            robust = attack_generator(seed, images[:count], 4, steps.processes)
        loss = steps._task_loss(images[:count], labels[:count], 4, drawn, robust)
        assert math.isfinite(float(loss.detach()))
        torch.autograd.backward(loss)
    assert torch.equal(*(generator.get_state() for generator in generators))


def test_an_interrupted_robust_search_ends_in_the_same_numbers(
    searcher: Searcher, tmp_path: Path, interrupted_after: Callable[[int], Progress]
) -> None:
    config = replace(CONFIG, robust="fast-at", tutors="none")
    whole = searcher.run(tmp_path / "whole", config)
    with pytest.raises(KeyboardInterrupt):
        searcher.run(tmp_path / "cut", config, progress=interrupted_after(5))
    cut = searcher.run(tmp_path / "cut", config)
    assert cut.history == whole.history
    assert cut.log_probabilities == whole.log_probabilities


def test_another_eps_is_another_search(searcher: Searcher, tmp_path: Path) -> None:
    config = replace(CONFIG, robust="fast-at", tutors="none")
    searcher.run(tmp_path / "c", config)
    with pytest.raises(ConfigError, match=r"eps: 0\.1 -> 0\.2"):
        searcher.run(tmp_path / "c", config, eps=0.2)
    # A plain search does not know of it.
    plain = replace(CONFIG, tutors="none")
    searcher.run(tmp_path / "p", plain)
    searcher.run(tmp_path / "p", plain, eps=0.2)


@pytest.mark.parametrize(
    "threat", [ThreatModel(norm="l2", eps=0.5), ThreatModel(protocol="normalized")]
)
def test_a_threat_that_is_not_trained_against_is_refused(
    searcher: Searcher, tmp_path: Path, threat: ThreatModel
) -> None:
    with pytest.raises(ConfigError, match="trains against l_inf perturbations of pixels"):
        search_supernet(
            searcher.space, searcher.costs, searcher.teacher, searcher.data, DataConfig(),
            replace(CONFIG, robust="pgd-at"), budgets=searcher.budgets, seed=0,
            checkpoint=tmp_path / "c", inputs={}, threat=threat,
        )  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"robust": "pgd"}, "there is no robust training `pgd`"),
        ({"robust": "pgd-at", "attack_steps": 0}, "`attack_steps` is at least 1"),
        ({"robust": "pgd-at", "fast_noise": 1.0}, "settings of fast-at"),
        ({"robust": "trades", "trades_beta": -1.0}, "`trades_beta`"),
    ],
)
def test_settings_that_make_no_sense_are_refused(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        SearchConfig(**changes)


def test_a_plain_step_smooths_labels_where_asked(searcher: Searcher) -> None:
    """The setting is of every cross-entropy that is trained on: none is passed over in silence."""
    logits, labels = torch.randn(4, 10), torch.arange(4)
    same = searcher.steps(replace(CONFIG, label_smoothing=0.2))._prediction_loss(
        logits, logits, labels
    )
    expected = functional.cross_entropy(logits, labels, reduction="sum", label_smoothing=0.2)
    torch.testing.assert_close(same, expected)
