"""RNAS-CL under a latency budget: the search itself.

References:
    Nath, Wang, Yang, "RNAS-CL: Robust Neural Architecture Search by Cross-Layer Knowledge
    Distillation", arXiv 2301.08092 (2023). Search loss: (CE + KL + gamma_s L_attn) times a cost
    term. Departures: the cost is measured latency; by default it is a constraint held by a
    multiplier rather than a factor; architecture and tutor logits are stepped on the validation
    split (the released code uses the test set).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Literal

import torch

from hwnas.core.errors import ConfigError, DataError
from hwnas.core.progress import SILENT, Progress
from hwnas.distill.tutors import TutorSelection
from hwnas.robustness.threat import Norm, ThreatModel
from hwnas.search.derive import check_budgets
from hwnas.search.objective_term import check_objective
from hwnas.search.objectives import BoundMethod, Objective
from hwnas.search.steps import SearchSteps
from hwnas.search.supernet import GateKind
from hwnas.training.loop import Figures, check_rates, run_epochs
from hwnas.training.processes import Processes
from hwnas.training.robust import (
    RobustMethod,
    RobustSettings,
    check_method,
    check_robust_settings,
)

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from hwnas.core.metrics import MetricLog
    from hwnas.data.images import ImageData
    from hwnas.data.sources import DataConfig
    from hwnas.distill.teacher import Teacher
    from hwnas.latency.resources import SpaceCosts
    from hwnas.robustness.threat import Eps
    from hwnas.search.budget import Budgets
    from hwnas.space.chain_space import ChainSpace
    from hwnas.space.supernet import Supernet


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchConfig(RobustSettings):
    """Settings of a search. The defaults are the paper's, but for its length.

    Those of `RobustSettings` are for the robust training of the supernet's weights.

    Attributes:
        epochs: Epochs; the paper has 100 on CIFAR-10.
        warmup_epochs: First epochs that step only weights; None takes a sixth of all. The paper has
            none.
        batch: Images per step.
        learning_rate: Peak rate of the weights (Adam, cosine).
        weight_decay: Of the weights.
        choice_learning_rate: Peak rate of architecture and tutor logits (Adam, cosine over their
            own steps; the paper's falls once an epoch).
        choice_weight_decay: Of the logits; it pulls choices that nothing speaks for back to even.
        tutors: How each student layer's tutors among the teacher's layers are selected: see
            `TutorSelection`.
        attention_weight: gamma_s.
        attention_size: Height and width of the attention maps; the paper has 14 for 32x32 images.
        gates: `soft` runs the relaxed mix of widths, as the paper does; `hard` runs one sampled
            network per step and passes gradients straight through; `mixture` weighs all options by
            their probabilities, without noise or temperature, as DARTS does.
        temperature_start: Gumbel-Softmax temperature of the first epoch.
        temperature_end: Of the last epoch.
        latency_term: `budget` holds expected latency under the budget by a multiplier;
            `product` multiplies the loss by alpha log(latency^beta), as the paper does. Budgets on
            other resources are held by multipliers either way.
        product_alpha: alpha above.
        product_beta: beta above; the latency is taken in microseconds.
        precision: `bf16` runs the supernet under autocast to bfloat16; losses, logits of choices
            and weights stay in float32.
        channels_last: Lay images and weights out channels last.
        compile: Compile the supernet with torch.compile.
        robust: How the supernet's weights are trained against perturbations of the threat's eps:
            see `hwnas.training.robust`. Its loss takes the place of CE + KL; tutors stay, and see
            the clean images where a method runs them. Choices go by the loss on clean images, and
            by the objective.
        objective: What choices are to raise besides: `jacobian`, how slowly logits change around an
            image; `certified`, a lower bound of its margin; `combined`, both. See
            `hwnas.search.objective_term`.
        objective_weight: gamma, 0.01 as DSRNA has it.
        objective_ramp: Share of the steps of choices in which gamma and the objective's eps grow
            from 0 to what they are.
        objective_every: Of how many steps of choices one has the objective, with that many times
            the weight.
        objective_images: Images of a step's batch that are rated.
        objective_classes: Rows of the Jacobian that are drawn for each image; 0 takes all. Fewer
            cost less, and leave the expectation as it is.
        objective_norm: Norm of the perturbation that the Jacobian is for.
        objective_eps: Radius of the ball that margins are bounded over, in pixel units. Bounds of
            networks that were not trained for them mean something for small ones alone.
        objective_bound: How margins are bounded; `crown-ibp` is tighter, and takes more than ten
            times as long.
    """

    epochs: int = 30
    warmup_epochs: int | None = None
    batch: int = 64
    learning_rate: float = 4e-3
    weight_decay: float = 2e-4
    choice_learning_rate: float = 0.1
    choice_weight_decay: float = 1e-4
    tutors: TutorSelection = "searched"
    attention_weight: float = 1.0
    attention_size: int = 14
    gates: GateKind = "soft"
    temperature_start: float = 5.0
    temperature_end: float = 0.055
    latency_term: Literal["budget", "product"] = "budget"
    product_alpha: float = 0.2
    product_beta: float = 0.5
    precision: Literal["fp32", "bf16"] = "fp32"
    channels_last: bool = True
    compile: bool = False
    robust: RobustMethod = "none"
    objective: Objective = "none"
    objective_weight: float = 0.01
    objective_ramp: float = 0.5
    objective_every: int = 2
    objective_images: int = 8
    objective_classes: int = 1
    objective_norm: Norm = "linf"
    objective_eps: float | str = "1/2550"
    objective_bound: BoundMethod = "ibp"

    def __post_init__(self) -> None:
        if self.epochs < 1:
            raise ConfigError(f"`epochs` is at least 1, not {self.epochs}")
        if not 0 <= self.warmup < self.epochs:
            raise ConfigError(
                f"`warmup_epochs` ({self.warmup_epochs}) must leave some of the "
                f"{self.epochs} `epochs` for the choices",
                hint="set both in the [search] of a configuration",
            )
        if self.batch < 2 or self.attention_size < 1:
            raise ConfigError("`batch` is at least 2 and `attention_size` at least 1")
        if self.tutors == "searched" and self.attention_weight == 0:
            raise ConfigError(
                '`tutors` is "searched", but `attention_weight` is 0: nothing would tell which '
                "tutors to choose",
                hint='set `tutors = "none"` in [search] to search without them',
            )
        check_rates(
            self,
            positive=("learning_rate", "choice_learning_rate", "temperature_start",
                      "temperature_end", "product_alpha", "product_beta"),
            weights=("weight_decay", "choice_weight_decay", "attention_weight"),
        )  # fmt: skip
        check_method(self.robust, has_teacher=True)
        check_robust_settings(self, self.robust)
        check_objective(self)

    @property
    def warmup(self) -> int:
        """First epochs that step only weights."""
        return self.epochs // 6 if self.warmup_epochs is None else self.warmup_epochs


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchOutcome:
    """What a search learned.

    Attributes:
        supernet: The trained weights of all networks.
        log_probabilities: (options,) per searched block.
        tutor_probabilities: (student layers, teacher layers); of a selection that is not searched,
            its weights.
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
    processes: Processes | None = None,
    log: MetricLog | None = None,
    threat: ThreatModel | None = None,
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
        processes: Those that search together, as torchrun has started them; by default found out.
        log: Where each epoch's figures go besides.
        threat: What a supernet that is trained robustly is trained against; None takes that of
            `ThreatModel`.
        progress: Where to report.

    Raises:
        BudgetError: No network of the space meets the budgets.
        ConfigError: The objective or the robust training does not go with the space or the threat.
        UnboundedOperationError: The objective needs bounds of an operation that has none.
        LatencyTableError: There is a budget on what the table does not tell.
        DataError: The validation split is too small for a step.
        TrainingDivergedError: A loss is not finite.
        ProcessError: Of several processes one has ended.
    """
    check_budgets(costs, budgets)
    for name, split in (("training", data.train), ("validation", data.validation)):
        if len(split) < 2:
            raise DataError(
                f"the {name} split of {data.name} has {len(split)} images: a step needs at least 2",
                hint="hold out another share: `validation` and `test` in [data]",
            )
    processes = processes or Processes()
    eps = attacked_eps(config, threat or ThreatModel())
    run = SearchSteps(
        space,
        costs,
        teacher,
        data,
        data_config,
        config,
        budgets,
        seed=seed,
        processes=processes,
        eps=eps,
    )
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
            "macs_m": budgets.macs_m,
            "params_k": budgets.params_k,
            "seed": seed,
            "eps": eps,
        },
        processes=processes,
        log=log,
        progress=progress,
    )
    with torch.no_grad():
        probabilities = run.choices.probabilities()
        tutors = run.tutor_probabilities()
        return SearchOutcome(
            supernet=run.supernet.cpu(),
            log_probabilities=tuple(
                tuple(torch.log_softmax(logits, dim=0).tolist()) for logits in run.choices.logits()
            ),
            tutor_probabilities=tuple(tuple(row) for row in tutors.tolist()),
            expected_ms=float(costs.latency.expected_ms(probabilities)),
            expected=run.budget.figures(probabilities),
            history=history,
        )


def attacked_eps(config: SearchConfig, threat: ThreatModel) -> Eps | None:
    """Return the eps that the supernet is trained against; None where it is not.

    Raises:
        ConfigError: The threat model is one that the training does not know.
    """
    if config.robust == "none":
        return None
    if threat.norm != "linf" or threat.protocol != "pixel":
        raise ConfigError(
            f"`robust` is {config.robust}, which trains against l_inf perturbations of pixels, but "
            f"[threat] is of {threat.norm} in {threat.protocol} units",
            hint='set `norm = "linf"` and `protocol = "pixel"` in [threat], or `robust = "none"` '
            "in [search]",
        )
    return threat.eps_pixels
