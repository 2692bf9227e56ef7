"""RNAS-CL under a latency budget: the search itself.

References:
    Nath, Wang, Yang, "RNAS-CL: Robust Neural Architecture Search by Cross-Layer Knowledge
    Distillation", arXiv 2301.08092 (2023). Search loss: (CE + KL + gamma_s L_attn) times a cost
    term. Departures: the cost is measured latency; by default it is a constraint held by a
    multiplier rather than a factor; architecture and tutor logits are stepped on the validation
    split (the released code uses the test set).
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch.nn import functional

from hwnas.core.errors import ConfigError, DataError
from hwnas.core.progress import SILENT, Progress
from hwnas.data.images import batches
from hwnas.distill.attention import attention_distances, attention_loss, maps_of_energies
from hwnas.distill.gumbel import gumbel_softmax, temperature_at
from hwnas.distill.losses import kl_to_teacher
from hwnas.search.budget import HeldBudgets
from hwnas.search.derive import check_budgets
from hwnas.search.supernet import Choices, sample_gates
from hwnas.space.memory_format import channels_last
from hwnas.training.loop import Epoch, Figures, check_rates, run_epochs, set_learning_rate

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from torch import Tensor

    from hwnas.data.images import ImageData
    from hwnas.data.sources import DataConfig
    from hwnas.distill.teacher import Teacher
    from hwnas.latency.resources import SpaceCosts
    from hwnas.search.budget import Budgets
    from hwnas.space.chain_space import ChainSpace
    from hwnas.space.supernet import Supernet


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchConfig:
    """Settings of a search. The defaults are the paper's, but for its length.

    Attributes:
        epochs: Epochs; the paper has 100 on CIFAR-10.
        warmup_epochs: First epochs that step only weights.
        batch: Images per step.
        learning_rate: Peak rate of the weights (Adam, cosine).
        weight_decay: Of the weights.
        choice_learning_rate: Peak rate of architecture and tutor logits (Adam, cosine).
        choice_weight_decay: Of the logits; it pulls choices that nothing speaks for back to even.
        attention_weight: gamma_s.
        attention_size: Height and width of the attention maps; the paper has 14 for 32x32 images.
        gates: `soft` runs the relaxed mix of widths, as the paper does; `hard` runs one sampled
            network per step and passes gradients straight through.
        temperature_start: Gumbel-Softmax temperature of the first epoch.
        temperature_end: Of the last epoch.
        latency_term: `budget` holds expected latency under the budget by a multiplier;
            `product` multiplies the loss by alpha log(latency^beta), as the paper does. Budgets on
            other resources are held by multipliers either way.
        product_alpha: alpha above.
        product_beta: beta above; the latency is taken in microseconds.
    """

    epochs: int = 30
    warmup_epochs: int = 5
    batch: int = 64
    learning_rate: float = 4e-3
    weight_decay: float = 2e-4
    choice_learning_rate: float = 0.1
    choice_weight_decay: float = 1e-4
    attention_weight: float = 1.0
    attention_size: int = 14
    gates: Literal["soft", "hard"] = "soft"
    temperature_start: float = 5.0
    temperature_end: float = 0.055
    latency_term: Literal["budget", "product"] = "budget"
    product_alpha: float = 0.2
    product_beta: float = 0.5

    def __post_init__(self) -> None:
        if not 0 <= self.warmup_epochs < self.epochs:
            raise ConfigError(
                f"`warmup_epochs` ({self.warmup_epochs}) must leave some of the "
                f"{self.epochs} `epochs` for the choices",
                hint="set both in the [search] of a configuration",
            )
        if self.batch < 2 or self.attention_size < 1:
            raise ConfigError("`batch` is at least 2 and `attention_size` at least 1")
        check_rates(
            self,
            positive=("learning_rate", "choice_learning_rate", "temperature_start",
                      "temperature_end", "product_alpha", "product_beta"),
            weights=("weight_decay", "choice_weight_decay", "attention_weight"),
        )  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchOutcome:
    """What a search learned.

    Attributes:
        supernet: The trained weights of all networks.
        log_probabilities: (options,) per searched block.
        tutor_probabilities: (student layers, teacher layers).
        expected_ms: Expected latency at the end.
        expected: All expected costs at the end, by the names that the history has for them.
        history: Figures of every epoch.
    """

    supernet: Supernet
    log_probabilities: tuple[tuple[float, ...], ...]
    tutor_probabilities: tuple[tuple[float, ...], ...]
    expected_ms: float
    expected: dict[str, float]
    history: list[Figures]


def search_supernet(
    space: ChainSpace,
    costs: SpaceCosts,
    teacher: Teacher,
    data: ImageData,
    data_config: DataConfig,
    config: SearchConfig,
    *,
    budgets: Budgets,
    seed: int,
    checkpoint: Path,
    inputs: Mapping[str, str],
    progress: Progress = SILENT,
) -> SearchOutcome:
    """Train a supernet's weights on the training split and its choices on the validation split.

    Args:
        space: The space.
        costs: What its networks take on the target.
        teacher: A robust network on the same classes.
        data: The images; the test split is not touched.
        data_config: Augmentation.
        config: The settings.
        budgets: Bounds on what a network may take.
        seed: Seed of initialization, order, augmentation and Gumbel noise.
        checkpoint: Where each epoch is kept.
        inputs: Hashes of the files behind the arguments; a checkpoint of others is refused.
        progress: Where to report.

    Raises:
        BudgetError: No network of the space meets the budgets.
        LatencyTableError: There is a budget on what the table does not tell.
        DataError: The validation split is too small for a step.
        TrainingDivergedError: A loss is not finite.
    """
    check_budgets(costs, budgets)
    if len(data.validation) < 2:
        raise DataError("the validation split needs at least two images to learn choices from")
    run = _Search(space, costs, teacher, data, data_config, config, budgets, seed)
    history = run_epochs(
        "search",
        run.epoch,
        epochs=config.epochs,
        seed=seed,
        parts={
            "supernet": run.supernet,
            "choices": run.choices,
            "weight_optimizer": run.weight_optimizer,
            "choice_optimizer": run.choice_optimizer,
            "budget": run.budget,
        },
        checkpoint=checkpoint,
        settings={
            **asdict(config),
            **data_config.as_settings(),
            **inputs,
            "budget_ms": budgets.latency_ms,
            "memory_kib": budgets.memory_kib,
            "weights_kib": budgets.weights_kib,
            "energy_mj": budgets.energy_mj,
            "seed": seed,
        },
        progress=progress,
    )
    with torch.no_grad():
        probabilities = run.choices.probabilities()
        return SearchOutcome(
            supernet=run.supernet,
            log_probabilities=tuple(
                tuple(torch.log_softmax(logits, dim=0).tolist())
                for logits in run.choices.architecture
            ),
            tutor_probabilities=tuple(
                tuple(row) for row in torch.softmax(run.choices.tutors, dim=1).tolist()
            ),
            expected_ms=float(costs.latency.expected_ms(probabilities)),
            expected=run.budget.figures(probabilities),
            history=history,
        )


class _Search:
    """The parts of a search and its steps."""

    def __init__(
        self,
        space: ChainSpace,
        costs: SpaceCosts,
        teacher: Teacher,
        data: ImageData,
        data_config: DataConfig,
        config: SearchConfig,
        budgets: Budgets,
        seed: int,
    ) -> None:
        self.config, self.data, self.data_config = config, data, data_config
        self.latency, self.teacher = costs.latency, teacher
        # Layers take their first weights from the global generator: borrow it, and give it back.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.supernet = channels_last(space.supernet())
        self.supernet.normalize.set_statistics(*data.pixel_statistics())
        self.choices = Choices(space, len(self.supernet.tap_names), len(teacher.layers))
        self.weight_optimizer = torch.optim.Adam(
            self.supernet.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay
        )
        self.choice_optimizer = torch.optim.Adam(
            self.choices.parameters(),
            lr=config.choice_learning_rate,
            weight_decay=config.choice_weight_decay,
        )
        self.budget = HeldBudgets(costs, budgets, hold_latency=config.latency_term == "budget")

    def epoch(self, epoch: Epoch) -> Figures:
        """Step the weights over the training split, then the choices over the validation split."""
        config, generator = self.config, epoch.generator
        temperature = temperature_at(
            epoch.index, epoch.count, start=config.temperature_start, end=config.temperature_end
        )
        choosing = epoch.index >= config.warmup_epochs
        splits = [(self.data.train, self.weight_optimizer, config.learning_rate)]
        if choosing:
            splits.append(
                (self.data.validation, self.choice_optimizer, config.choice_learning_rate)
            )
        steps = sum(math.ceil(len(split) / config.batch) for split, _, _ in splits)
        done = 0
        losses: dict[int, list[float]] = {}
        self.supernet.train()
        for part, (split, optimizer, peak) in enumerate(splits):
            losses[part] = []
            # Each step needs gradients for one side only.
            self.supernet.requires_grad_(requires_grad=part == 0)
            self.choices.requires_grad_(requires_grad=part == 1)
            stream = batches(
                split,
                config.batch,
                generator,
                pad=self.data_config.pad,
                flip=self.data_config.flip,
            )
            for images, labels in stream:
                rate = 0.5 * peak * (1.0 + math.cos(math.pi * epoch.fraction(done, steps)))
                set_learning_rate(optimizer, rate)
                loss = self._task_loss(images, labels, temperature, generator)
                if part == 1:
                    loss = self._with_latency(loss)
                optimizer.zero_grad(set_to_none=True)
                loss.backward()  # type: ignore[no-untyped-call]
                losses[part].append(epoch.step(loss, steps))
                optimizer.step()
                done += 1
        return self._figures(losses, temperature)

    def _task_loss(
        self, images: Tensor, labels: Tensor, temperature: float, generator: torch.Generator
    ) -> Tensor:
        """Compute CE + KL + gamma_s L_attn for one sample of gates and tutors."""
        config = self.config
        hard = config.gates == "hard"
        gates = sample_gates(self.choices, temperature, generator, hard=hard)
        tutors = gumbel_softmax(self.choices.tutors, temperature, generator)
        logits, energies = self.supernet(images, gates)
        teacher_logits, teacher_maps = self.teacher.observe(images)
        distances = attention_distances(
            maps_of_energies(energies, config.attention_size), teacher_maps
        )
        return (
            functional.cross_entropy(logits, labels)
            + kl_to_teacher(logits, teacher_logits).mean()
            + config.attention_weight * attention_loss(distances, tutors)
        )

    def _with_latency(self, loss: Tensor) -> Tensor:
        """Add the latency term and the terms of the budgets, and let the multipliers follow."""
        probabilities = self.choices.probabilities()
        if self.config.latency_term == "product":
            expected_us = self.latency.expected_ms(probabilities) * 1e3
            log_cost = self.config.product_beta * torch.log(expected_us)
            loss = self.config.product_alpha * loss * log_cost
        return self.budget.constrain(loss, probabilities)

    @torch.no_grad()
    def _figures(self, losses: dict[int, list[float]], temperature: float) -> Figures:
        probabilities = self.choices.probabilities()
        entropy = sum(float(-(p * p.log()).nansum()) for p in probabilities) / len(probabilities)
        figures = {"loss": _mean(losses[0])}
        if 1 in losses:
            figures["choice_loss"] = _mean(losses[1])
        return {
            **figures,
            **self.budget.figures(probabilities),
            "entropy": entropy,
            "temperature": temperature,
        }


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)
