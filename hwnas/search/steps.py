"""The steps of an RNAS-CL search: weights on one split, choices of widths and tutors on another."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, final

import torch
from torch.nn import functional

from hwnas.data.images import batch_sizes, batches
from hwnas.distill.attention import attention_distances, attention_loss, maps_of_energies
from hwnas.distill.gumbel import gumbel_softmax, temperature_at
from hwnas.distill.losses import kl_to_teacher
from hwnas.distill.tutors import fixed_tutors
from hwnas.search.budget import HeldBudgets
from hwnas.search.supernet import Choices, sample_gates
from hwnas.space.memory_format import channels_last
from hwnas.training.loop import set_learning_rate

if TYPE_CHECKING:
    from torch import Tensor

    from hwnas.data.images import ImageData
    from hwnas.data.sources import DataConfig
    from hwnas.distill.teacher import Teacher
    from hwnas.latency.resources import SpaceCosts
    from hwnas.search.budget import Budgets
    from hwnas.search.rnas_cl import SearchConfig
    from hwnas.space.chain_space import ChainSpace
    from hwnas.training.loop import Epoch, Figures
    from hwnas.training.processes import Processes


@final
class SearchSteps:
    """The parts of a search, and one step of each of its two kinds.

    Args:
        space: The space.
        costs: What its networks take on the target.
        teacher: A robust network on the same classes.
        data: The images.
        data_config: Augmentation.
        config: The settings.
        budgets: Bounds on what a network may take.
        seed: Seed of initialization and of random tutors.
        processes: Those that search together.

    Attributes:
        supernet: The weights.
        choices: The logits of widths or operators, and of tutors.
        weight_optimizer: Steps the weights.
        choice_optimizer: Steps the choices.
        budget: The multipliers that hold the budgets.
    """

    def __init__(
        self,
        space: ChainSpace,
        costs: SpaceCosts,
        teacher: Teacher,
        data: ImageData,
        data_config: DataConfig,
        config: SearchConfig,
        budgets: Budgets,
        *,
        seed: int,
        processes: Processes,
    ) -> None:
        self.config, self.data_config, self.processes = config, data_config, processes
        device = processes.device
        self.train, self.validation = data.train.to(device), data.validation.to(device)
        self.latency = costs.latency
        self.teacher = teacher.to(device)
        # Layers take their first weights from the global generator: borrow it, and give it back.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.supernet = space.supernet()
        if config.channels_last:
            channels_last(self.supernet)
        self.supernet.normalize.set_statistics(*data.pixel_statistics())
        students, teachers = len(self.supernet.tap_names), len(teacher.layers)
        self.choices = Choices(space, students, teachers).to(device)
        self._fixed_tutors: Tensor | None = None
        if config.tutors != "searched":
            generator = torch.Generator().manual_seed(seed)
            fixed = fixed_tutors(config.tutors, students, teachers, generator)
            self._fixed_tutors = fixed.to(device)
        self._observe = config.tutors != "none" and config.attention_weight > 0
        self._module = processes.module(self.supernet, compiled=config.compile)
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
        parts = [(self.train, self.step_weights, self.weight_optimizer, config.learning_rate)]
        if epoch.index >= config.warmup:
            parts.append(
                (
                    self.validation,
                    self.step_choices,
                    self.choice_optimizer,
                    config.choice_learning_rate,
                )
            )
        steps = sum(len(batch_sizes(split, config.batch)) for split, *_ in parts)
        done = 0
        means = []
        for split, take_step, optimizer, peak in parts:
            losses = []
            stream = batches(
                split,
                config.batch,
                generator,
                pad=self.data_config.pad,
                flip=self.data_config.flip,
                share=self.processes.share,
            )
            sizes = batch_sizes(split, config.batch)
            for (images, labels), total in zip(stream, sizes, strict=True):
                rate = 0.5 * peak * (1.0 + math.cos(math.pi * epoch.fraction(done, steps)))
                set_learning_rate(optimizer, rate)
                loss = take_step(images, labels, total, temperature, generator)
                losses.append(epoch.step(loss, steps))
                done += 1
            means.append(sum(losses) / len(losses))
        self.processes.require_in_step("architecture and tutor logits", self.choices.parameters())
        return self._figures(means, temperature)

    def step_weights(
        self,
        images: Tensor,
        labels: Tensor,
        total: int,
        temperature: float,
        generator: torch.Generator,
    ) -> Tensor:
        """Step the weights down CE + KL + gamma_s L_attn, for one sample of gates and tutors.

        Args:
            images: This process's part of a batch, (batch, channels, height, width), in [0, 1].
            labels: (batch,).
            total: Images of the batch over all processes.
            temperature: Of the Gumbel-Softmax.
            generator: Source of its noise, in the same state on all processes.

        Returns:
            The loss of the whole batch, without gradients.
        """
        self._learn(weights=True)
        loss = self._task_loss(images, labels, total, temperature, generator)
        self.weight_optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        self.weight_optimizer.step()
        return self.processes.mean(loss)

    def step_choices(
        self,
        images: Tensor,
        labels: Tensor,
        total: int,
        temperature: float,
        generator: torch.Generator,
    ) -> Tensor:
        """Step widths or operators, and tutors, down the same loss with its latency term.

        Takes and returns what `step_weights` does; the loss is that with all terms.
        """
        self._learn(weights=False)
        with self.processes.without_sync(self._module):
            task = self._task_loss(images, labels, total, temperature, generator)
            size = self.processes.mean(task)
            loss = self._with_costs(task, size)
            self.choice_optimizer.zero_grad(set_to_none=True)
            torch.autograd.backward(loss)
        self.processes.average_gradients(self.choices.parameters())
        self.choice_optimizer.step()
        return self.processes.mean(loss)

    @torch.no_grad()
    def tutor_probabilities(self) -> Tensor:
        """Return (student layers, teacher layers): searched, or the fixed weights."""
        if self._fixed_tutors is not None:
            return self._fixed_tutors
        return torch.softmax(self.choices.tutors, dim=1)

    def _learn(self, *, weights: bool) -> None:
        """Let gradients flow to one side only."""
        self.supernet.train()
        self.supernet.requires_grad_(requires_grad=weights)
        self.choices.requires_grad_(requires_grad=not weights)

    def _task_loss(
        self,
        images: Tensor,
        labels: Tensor,
        total: int,
        temperature: float,
        generator: torch.Generator,
    ) -> Tensor:
        """Compute this process's part: the mean over the processes is the loss of the batch."""
        config = self.config
        if not config.channels_last:
            images = images.contiguous()
        # The teacher first: afterward it would push what backward needs out of the cache.
        taught = self._taught(images) if len(images) else None
        gates = sample_gates(self.choices, temperature, generator, hard=config.gates == "hard")
        # Drawn whether or not this process has images: else its later gates were not the others'.
        tutors = self._fixed_tutors
        if tutors is None:
            tutors = gumbel_softmax(self.choices.tutors, temperature, generator)
        with torch.autocast(
            images.device.type, dtype=torch.bfloat16, enabled=config.precision == "bf16"
        ):
            logits, energies = self._module(images, gates, observe=self._observe)
        logits = logits.float()
        weight = self.processes.count / total
        if taught is None:  # more processes than images: take part in the exchange alone
            return 0.0 * torch.stack([part.sum() for part in (logits, *energies)]).sum()
        teacher_logits, teacher_maps = taught
        prediction = self._prediction_loss(logits, teacher_logits, labels)
        if teacher_maps is None:
            return weight * prediction
        maps = maps_of_energies(energies, config.attention_size)
        attention = attention_loss(attention_distances(maps, teacher_maps), tutors)
        return weight * (prediction + len(images) * config.attention_weight * attention)

    def _taught(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return the teacher's logits and, where layers learn from it, its maps."""
        if self._observe:
            return self.teacher.observe(images)
        return self.teacher.logits(images), None

    @staticmethod
    def _prediction_loss(logits: Tensor, teacher_logits: Tensor, labels: Tensor) -> Tensor:
        """Sum CE + KL over the images."""
        cross_entropy = functional.cross_entropy(logits, labels, reduction="sum")
        return cross_entropy + kl_to_teacher(logits, teacher_logits).sum()

    def _with_costs(self, task: Tensor, size: Tensor) -> Tensor:
        """Add the latency term and the terms of the budgets, and let the multipliers follow.

        Args:
            task: This process's part of the loss.
            size: The loss of the batch, which the terms of the budgets are weighed by.
        """
        probabilities = self.choices.probabilities()
        loss = task
        if self.config.latency_term == "product":
            expected_us = self.latency.expected_ms(probabilities) * 1e3
            factor = self.config.product_alpha * self.config.product_beta * torch.log(expected_us)
            loss, size = loss * factor, size * factor.detach()
        return loss + self.budget.constrain(size, probabilities) - size

    @torch.no_grad()
    def _figures(self, means: list[float], temperature: float) -> Figures:
        probabilities = self.choices.probabilities()
        entropy = sum(float(-(p * p.log()).nansum()) for p in probabilities) / len(probabilities)
        figures = dict(zip(("loss", "choice_loss"), means, strict=False))
        return {
            **figures,
            **self.budget.figures(probabilities),
            "entropy": entropy,
            "temperature": temperature,
        }
