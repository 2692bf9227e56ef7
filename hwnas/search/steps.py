"""The steps of an RNAS-CL search: weights on one split, choices of widths and tutors on another."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple, final

import torch
from torch.nn import functional

from hwnas.data.images import batch_sizes, batches, pixels_from_bytes
from hwnas.distill.attention import attention_distances, attention_loss, maps_of_energies
from hwnas.distill.gumbel import gumbel_softmax, temperature_at
from hwnas.distill.losses import kl_to_teacher
from hwnas.distill.tutors import fixed_tutors
from hwnas.search.budget import HeldBudgets
from hwnas.search.objective_term import ObjectiveTerm
from hwnas.search.robust_pass import attack_generator, robust_pass
from hwnas.search.supernet import Choices, sample_gates
from hwnas.space.memory_format import channels_last
from hwnas.training.loop import set_learning_rate
from hwnas.training.robust import NEEDS_TEACHER

if TYPE_CHECKING:
    from torch import Tensor

    from hwnas.data.images import ImageData
    from hwnas.data.sources import DataConfig
    from hwnas.distill.teacher import Teacher
    from hwnas.latency.resources import SpaceCosts
    from hwnas.robustness.threat import Eps
    from hwnas.search.budget import Budgets
    from hwnas.search.rnas_cl import SearchConfig
    from hwnas.space.chain_space import ChainSpace
    from hwnas.training.loop import Epoch, Figures
    from hwnas.training.processes import Processes


class _Drawn(NamedTuple):
    """What a step draws: one sample for all of its terms.

    Attributes:
        gates: Of each searched block.
        tutors: (student layers, teacher layers).
    """

    gates: list[Tensor]
    tutors: Tensor


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
        eps: What the weights are trained against, in pixel units; None where `robust` is none.

    Attributes:
        supernet: The weights.
        choices: The logits of widths or operators, and of tutors.
        weight_optimizer: Steps the weights.
        choice_optimizer: Steps the choices.
        budget: The multipliers that hold the budgets.
        objective: What the choices are to raise besides.

    Raises:
        ConfigError: The space cannot be searched with the objective.
        UnboundedOperationError: The objective needs bounds of an operation that has none.
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
        eps: Eps | None = None,
    ) -> None:
        self.config, self.data_config, self.processes = config, data_config, processes
        self._eps = eps
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
        self.objective = ObjectiveTerm(config, self.supernet, space.spec.classes, processes)
        if config.objective != "none":
            self._learn(weights=False)
            some = pixels_from_bytes(self.validation.images[:2])
            self.objective.require_possible(some, self.choices.probabilities(), space.spec.name)

    def epoch(self, epoch: Epoch) -> Figures:
        """Step the weights over the training split, then the choices over the validation split."""
        config, generator = self.config, epoch.generator
        temperature = temperature_at(
            epoch.index, epoch.count, start=config.temperature_start, end=config.temperature_end
        )
        parts = [(self.train, self.step_weights, self.weight_optimizer, config.learning_rate, 0)]
        if epoch.index >= config.warmup:
            parts.append(
                (
                    self.validation,
                    self.step_choices,
                    self.choice_optimizer,
                    config.choice_learning_rate,
                    config.warmup,
                )
            )
        steps = sum(len(batch_sizes(split, config.batch)) for split, *_ in parts)
        means = []
        for split, take_step, optimizer, peak, skipped in parts:
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
            before = (epoch.index - skipped) * len(sizes)
            whole = (epoch.count - skipped) * len(sizes)
            for step, ((images, labels), total) in enumerate(zip(stream, sizes, strict=True)):
                done = (before + step) / whole
                if optimizer is self.choice_optimizer:
                    self.objective.begin(done, before + step)
                # Each side's cosine is over its own steps: over those of both, choices, which come
                # last in an epoch, would have no rate left in the last one.
                rate = 0.5 * peak * (1.0 + math.cos(math.pi * done))
                set_learning_rate(optimizer, rate)
                loss = take_step(images, labels, total, temperature, generator)
                losses.append(epoch.step(loss, steps))
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

        Where they are trained robustly, that loss is in the place of CE + KL.

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
        drawn = self._drawn(temperature, generator)
        robust = None
        if self.config.robust != "none":
            seed = int(torch.randint(2**62, (), generator=generator))
            robust = attack_generator(seed, images, total, self.processes)
        loss = self._task_loss(images, labels, total, drawn, robust)
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

        A robustness objective is subtracted. Takes and returns what `step_weights` does; the loss
        is that with all terms.
        """
        self._learn(weights=False)
        with self.processes.without_sync(self._module):
            drawn = self._drawn(temperature, generator)
            task = self._task_loss(images, labels, total, drawn)
            size = self.processes.mean(task)
            loss = self._with_costs(task, size)
            reward = self.objective.reward(images, labels, total, drawn.gates, generator)
            if reward is not None:
                loss = loss - reward
            self.choice_optimizer.zero_grad(set_to_none=True)
            # No farther than to the choices: the pixels that an objective looks at get none.
            torch.autograd.backward(loss, inputs=list(self.choices.parameters()))
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

    def _drawn(self, temperature: float, generator: torch.Generator) -> _Drawn:
        """Draw gates and tutors, on all processes alike, whether or not they have images."""
        gates = sample_gates(self.choices, temperature, generator, kind=self.config.gates)
        tutors = self._fixed_tutors
        if tutors is None:
            tutors = gumbel_softmax(self.choices.tutors, temperature, generator)
        return _Drawn(gates, tutors)

    def _task_loss(
        self,
        images: Tensor,
        labels: Tensor,
        total: int,
        drawn: _Drawn,
        robust: torch.Generator | None = None,
    ) -> Tensor:
        """Compute this process's part: the mean over the processes is the loss of the batch.

        Args:
            images: As of `step_weights`.
            labels: As of `step_weights`.
            total: As of `step_weights`.
            drawn: Gates and tutors.
            robust: Source of an attack's starts where the pass is to be robust.
        """
        config = self.config
        if not config.channels_last:
            images = images.contiguous()
        # The teacher first: afterward it would push what backward needs out of the cache.
        teacher_logits, teacher_maps = self._taught(images, robust=robust is not None)

        def run(images: Tensor, *, trained: bool) -> tuple[Tensor, tuple[Tensor, ...]]:
            # Wrapped and compiled modules are for the one pass that weights get gradients from.
            module = self._module if trained else self.supernet
            with torch.autocast(
                images.device.type, dtype=torch.bfloat16, enabled=config.precision == "bf16"
            ):
                logits, energies = module(images, drawn.gates, observe=self._observe and trained)
            return logits.float(), energies

        if robust is None:
            logits, energies = run(images, trained=True)
            if not len(images):  # more processes than images: take part in the exchange alone
                return _nothing(logits, *energies)
            prediction = self._prediction_loss(logits, teacher_logits, labels)
        else:
            assert self._eps is not None
            losses, energies = robust_pass(
                config.robust,
                run,
                self.supernet,
                images,
                labels,
                teacher_logits,
                settings=config,
                eps=self._eps,
                generator=robust,
            )
            if not len(images):
                return _nothing(losses, *energies)
            prediction = losses.sum()
        weight = self.processes.count / total
        if teacher_maps is None:
            return weight * prediction
        maps = maps_of_energies(energies, config.attention_size)
        attention = attention_loss(attention_distances(maps, teacher_maps), drawn.tutors)
        return weight * (prediction + len(images) * config.attention_weight * attention)

    def _taught(self, images: Tensor, *, robust: bool) -> tuple[Tensor | None, Tensor | None]:
        """Return the teacher's logits where they are learned from, and its maps likewise."""
        if not len(images):
            return images.new_zeros(0, self.teacher.classes), None
        if self._observe:
            return self.teacher.observe(images)
        asked = self.config.robust in NEEDS_TEACHER if robust else self.config.kl_weight > 0
        return (self.teacher.logits(images) if asked else None), None

    def _prediction_loss(
        self, logits: Tensor, teacher_logits: Tensor | None, labels: Tensor
    ) -> Tensor:
        """Sum CE + KL over the images."""
        cross_entropy = functional.cross_entropy(
            logits, labels, reduction="sum", label_smoothing=self.config.label_smoothing
        )
        if teacher_logits is None or not self.config.kl_weight:
            return cross_entropy
        return cross_entropy + self.config.kl_weight * kl_to_teacher(logits, teacher_logits).sum()

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
            **self.objective.figures(),
            "entropy": entropy,
            "temperature": temperature,
        }


def _nothing(*parts: Tensor) -> Tensor:
    """Return 0 with a gradient to all that the parts, of no images, were computed with."""
    return 0.0 * torch.stack([part.sum() for part in parts]).sum()
