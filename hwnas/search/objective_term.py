"""When and on what a robustness objective acts in a search, and how processes share it."""

from __future__ import annotations

import math
from dataclasses import fields
from typing import TYPE_CHECKING, Any, final

import torch

from hwnas.core.errors import ConfigError, TrainingDivergedError, UnboundedOperationError
from hwnas.robustness.evaluate import evaluating
from hwnas.robustness.jacobian import centered_squares, even_rows, scale_of_square
from hwnas.robustness.threat import Eps, parse_eps
from hwnas.search.objectives import objective_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from hwnas.search.objectives import Rated
    from hwnas.search.rnas_cl import SearchConfig
    from hwnas.space.supernet import Supernet
    from hwnas.training.processes import Processes

_NOT_TWICE = ("is not implemented", "once_differentiable")
"""What torch says of functions that cannot be differentiated twice; it has no type for them."""

_ONLY = {
    "objective_classes": ("jacobian", "combined"),
    "objective_norm": ("jacobian",),
    "objective_eps": ("certified", "combined"),
    "objective_bound": ("certified", "combined"),
}
"""Settings that mean something for some objectives alone. A certified bound is one of l_inf."""


@final
class ObjectiveTerm:
    """gamma(t) R, which steps of the choices raise: R is the mean rating of some of their images.

    Ratings are in units of s, the root mean square of the logits around each image's mean, over
    those images. s keeps its graph: else shrinking logits would still be rewarded.

    It sees the supernet in eval mode, whose statistics and modes stay as they are, in float32 (no
    autocast), on an even part of the step's batch, with the gates of the step's other terms.

    Args:
        config: The settings.
        supernet: The supernet; its forward is called, not that of a wrapper, as what torch.compile
            makes cannot be differentiated twice, and weights get no gradients.
        classes: Classes to tell apart.
        processes: Those that search together.

    Raises:
        ConfigError: There are fewer classes than `objective_classes`.

    References:
        Hosseini et al., DSRNA (arXiv 2012.06122): L_val - gamma R, gamma = 0.01. Departures: the
        scale, the ramp, and that a part of the batch is rated.
    """

    def __init__(
        self, config: SearchConfig, supernet: Supernet, classes: int, processes: Processes
    ) -> None:
        if config.objective_classes > classes:
            raise ConfigError(
                f"`objective_classes` is {config.objective_classes}, but there are {classes} "
                "classes",
                hint="0 takes all of them",
            )
        self._objective = objective_of(config)
        self._config, self._supernet, self._processes = config, supernet, processes
        self._classes = classes
        self._rows = config.objective_classes or classes
        self._seen: list[float] = []
        self._ramp, self._acts = 1.0, True

    def begin(self, fraction: float, step: int) -> None:
        """Say where the search is, before a step of the choices.

        Args:
            fraction: How much of the steps of choices is done, in [0, 1).
            step: How many of them are done.
        """
        config = self._config
        ramp = config.objective_ramp
        self._ramp = min(1.0, fraction / ramp) if ramp > 0 else 1.0
        self._acts = step % config.objective_every == 0 and self._ramp > 0

    def reward(
        self,
        images: Tensor,
        labels: Tensor,
        total: int,
        gates: Sequence[Tensor],
        generator: torch.Generator,
    ) -> Tensor | None:
        """Return gamma(t) R of the batch, or None where this step has no such term.

        Its value is that of the whole batch on every process; the mean over the processes of its
        gradients is the gradient.

        Args:
            images: This process's part of a batch, (batch, channels, height, width), in [0, 1].
            labels: (batch,).
            total: Images of the batch over all processes.
            gates: Of the step.
            generator: Source of sampled classes, in the same state on all processes.
        """
        if self._objective is None or not self._acts:
            return None
        config = self._config
        count = min(config.objective_images, total)
        # Drawn for the whole batch by each process: else their generators would fall apart.
        rows = None
        if self._rows < self._classes:
            rows = even_rows(count, self._classes, self._rows, generator)
        # Of all images of the batch, which place among the rated ones each has; -1 has none.
        places = torch.full((total,), -1)
        places[torch.arange(count) * total // count] = torch.arange(count)
        own = self._processes.share(places)
        chosen = own >= 0
        where = chosen.to(images.device)
        rated = self._rate(
            images[where],
            labels[where],
            gates,
            None if rows is None else rows[own[chosen]].to(images.device),
        )
        objective = self._mean(rated, count, images)
        self._seen.append(self._finite(objective))
        # As often as it is left out it counts more: gamma means the same for every `every`.
        return config.objective_every * config.objective_weight * self._ramp * objective

    def figures(self) -> dict[str, float]:
        """Return the mean R of the steps since the last call, where there were any."""
        seen, self._seen = self._seen, []
        return {"objective": sum(seen) / len(seen)} if seen else {}

    def require_possible(self, images: Tensor, gates: Sequence[Tensor], space: str) -> None:
        """Rate some images, so that what cannot be differentiated or bounded is found at once.

        The supernet's weights must not require gradients.

        Args:
            images: A few, (N, channels, height, width).
            gates: Any, of at least 0 and with the sum 1.
            space: Name of the space.

        Raises:
            UnboundedOperationError: The supernet runs an operation that no sound bound is known of.
            ConfigError: It runs one that the Jacobian's gradient is not known of.
        """
        objective = self._config.objective
        labels = torch.zeros(len(images), dtype=torch.int64, device=images.device)
        rows = labels[:, None] if self._rows < self._classes else None
        given = [gate.detach().requires_grad_() for gate in gates]
        try:
            rated = self._rate(images, labels, given, rows)
            assert rated is not None
            ratings = rated.by_scale(scale_of_square(centered_squares(rated.logits).mean()))
            # To all leaves: on the way to chosen ones, torch passes over what it cannot do.
            torch.autograd.backward(ratings.sum())
        except UnboundedOperationError as error:
            raise UnboundedOperationError(
                f"`objective` is {objective}, which needs bounds of all that {space} runs: "
                f"{error.message}",
                hint=error.hint or "`objective` jacobian needs none",
            ) from error
        except RuntimeError as error:
            if not any(sign in str(error) for sign in _NOT_TWICE):
                raise
            raise ConfigError(
                f"`objective` is {objective}, but {space} runs what torch cannot differentiate "
                f"twice: {str(error).partition(chr(10))[0]}",
                hint="write the operation with functions of torch, or search with another "
                "`objective`",
            ) from error

    def _rate(
        self, images: Tensor, labels: Tensor, gates: Sequence[Tensor], rows: Tensor | None
    ) -> Rated | None:
        """Rate this process's images; None where it has none."""
        if not len(images):
            return None
        assert self._objective is not None
        if self._config.channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        eps = Eps(self._ramp * parse_eps(self._config.objective_eps))

        def forward(points: Any) -> Any:
            return self._supernet(points, gates, observe=False).logits

        with evaluating(self._supernet):
            return self._objective(forward, images, labels, eps=eps, rows=rows)

    def _mean(self, rated: Rated | None, count: int, images: Tensor) -> Tensor:
        """Return R of the images of all processes; its gradient is this process's part."""
        weight = self._processes.count / count
        value = square = images.new_zeros(())
        if rated is not None:
            square = weight * centered_squares(rated.logits).sum()
        # The scale is that of all images. Ratings are taken at its value, and by how much they
        # would move with it, over all images, each process adds its own part of its gradient.
        scale = scale_of_square(self._of_all(square))
        fixed = scale.detach().requires_grad_()
        slope = torch.zeros_like(fixed)
        if rated is not None:
            value = weight * rated.by_scale(fixed).sum()
            (slope,) = torch.autograd.grad(value, fixed, retain_graph=True)
        slope = self._processes.mean(slope)
        return self._of_all(value) + slope * (scale - scale.detach())

    def _of_all(self, own: Tensor) -> Tensor:
        """Return the mean over the processes, with the gradient of this one's."""
        return own + (self._processes.mean(own) - own.detach())

    def _finite(self, objective: Tensor) -> float:
        """Return the objective as a number.

        Raises:
            TrainingDivergedError: It is none.
        """
        value = float(objective.detach())
        if not math.isfinite(value):
            raise TrainingDivergedError(
                f"the objective `{self._config.objective}` is {value}: bounds multiply layer by "
                "layer, and may exceed what float32 holds",
                hint="lower `objective_eps`, or search with `objective` jacobian",
            )
        return value


def check_objective(config: SearchConfig) -> None:
    """Refuse settings of an objective that contradict each other.

    Raises:
        ConfigError: A setting is out of range, or would be passed over in silence.
    """
    objective = config.objective
    defaults: dict[str, Any] = {
        each.name: each.default for each in fields(config) if each.name.startswith("objective_")
    }
    given = [name for name, default in defaults.items() if getattr(config, name) != default]
    if objective == "none" and given:
        raise ConfigError(
            f"`{given[0]}` is given, but `objective` is none",
            hint="set `objective` to jacobian, certified or combined in [search]",
        )
    for name in given:
        if name in _ONLY and objective not in _ONLY[name]:
            raise ConfigError(
                f"`{name}` is a setting of {' and '.join(_ONLY[name])}, but `objective` is "
                f"{objective}",
                hint=f"leave it at {defaults[name]!r}",
            )
    if objective == "none":
        return
    weight, ramp = config.objective_weight, config.objective_ramp
    if not (math.isfinite(weight) and weight > 0):
        raise ConfigError(
            f"`objective_weight` is a positive number, not {weight}",
            hint='set `objective = "none"` to search without one',
        )
    if not 0 <= ramp <= 1:
        raise ConfigError(f"`objective_ramp` is a share between 0 and 1, not {ramp}")
    if config.objective_every < 1:
        raise ConfigError(f"`objective_every` is at least 1, not {config.objective_every}")
    if config.objective_classes < 0:
        raise ConfigError(
            f"`objective_classes` is at least 0, not {config.objective_classes}",
            hint="0 takes all classes",
        )
    if not 1 <= config.objective_images <= config.batch:
        raise ConfigError(
            f"`objective_images` ({config.objective_images}) is between 1 and `batch` "
            f"({config.batch})",
            hint="they are a part of the batch of a step",
        )
    if objective != "jacobian" and not parse_eps(config.objective_eps) > 0:
        raise ConfigError(
            "`objective_eps` is 0: a margin at the image itself is not one of robustness"
        )
