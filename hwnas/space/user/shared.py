"""One module at many widths, on one set of weights: what a user's option is in a supernet.

Every tensor of the narrower module is the first entries, in each dimension, of the same tensor of
the widest: that is what `slim_state` cuts out. The narrower module can always be run on these
windows, once for each pair of widths. Where a wider one is found to give the same on channels that
are closed (as convolutions do, and what normalizes over channels does not), one run serves several
pairs, and a mask closes the channels of its output: see `SharedModule.runs`.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias, final

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

from hwnas.space.operators import as_trained

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

Pair: TypeAlias = tuple[int, int]
Window: TypeAlias = tuple[slice, ...]

_TOLERANCE = 1e-4  # of the largest value: rounding is a hundredth of it, another function is not


@dataclass(frozen=True, slots=True)
class Run:
    """One call of a module, and the pairs of widths that its output serves."""

    at: int
    serves: tuple[int, ...]


@final
class SharedModule(nn.Module):
    """A module for several pairs of input and output widths, which share their weights.

    Args:
        build: Builds it for a pair of widths.
        pairs: The pairs.
        size: Height and width of its input.

    Attributes:
        pairs: The pairs, (input, output) channels.
        runs: How often it is called, and for which pairs each time.
        own: Modules of pairs that cannot share weights, as their tensors are others in number, in
            dimensions, or larger than those of the widest; by the pair's index.
    """

    def __init__(
        self, build: Callable[[int, int], nn.Module], pairs: Sequence[Pair], size: tuple[int, int]
    ) -> None:
        super().__init__()
        self.pairs = tuple(pairs)
        self._widest = self.pairs.index(max(self.pairs))
        self.widest = build(*self.pairs[self._widest])
        self.own = nn.ModuleDict()
        # Not registered: they lend their code, not their weights.
        self._codes: list[nn.Module] = []
        self._windows: list[dict[str, Window]] = []
        self._constants: list[dict[str, str]] = []
        for index, pair in enumerate(self.pairs):
            code = self.widest if index == self._widest else build(*pair)
            windows = _windows(code, self.widest)
            if windows is None:
                self.own[str(index)] = code
            self._codes.append(code)
            self._windows.append(windows or {})
            self._constants.append({} if windows is None else self._kept_constants(index))
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            self.runs = self._fewest_runs(size)
        for number, run in enumerate(self.runs):
            masks = torch.zeros(len(self.pairs), self.pairs[run.at][1])
            for each in run.serves:
                masks[each, : self.pairs[each][1]] = 1.0
            self.register_buffer(f"masks{number}", masks, persistent=False)

    def train(self, mode: bool = True) -> SharedModule:
        """Set the mode, of the modules that lend their code too."""
        super().train(mode)
        for code in self._codes:
            code.train(mode)
        return self

    def forward(self, features: Tensor, weights: Tensor) -> Tensor:
        """Compute the sum over its pairs, each weighed, on the channels that it has.

        Args:
            features: (batch, channels, ...); of those that a pair does not have, nothing is read.
            weights: One per pair, (pairs,).

        Returns:
            (batch, widest output, ...)
        """
        total: Tensor | None = None
        widest = max(width for _, width in self.pairs)
        for number, run in enumerate(self.runs):
            width_in, width_out = self.pairs[run.at]
            output = self._at(run.at, features[:, :width_in])
            # No product of matrices: autocast would round the weights before they are summed.
            mask = (weights[:, None] * self.get_buffer(f"masks{number}")).sum(dim=0)
            output = output * mask.to(output.dtype).view(-1, *(1,) * (output.ndim - 2))
            if width_out < widest:
                behind = (0, 0) * (output.ndim - 2) + (0, widest - width_out)
                output = functional.pad(output, behind)
            total = output if total is None else total + output
        assert total is not None
        return total

    def state_of(self, pair: Pair) -> dict[str, Tensor]:
        """Cut the state of the module for a pair of widths out, by the names that it has there."""
        index = self.pairs.index(pair)
        code = self._codes[index]
        if str(index) in self.own:
            return {name: tensor.clone() for name, tensor in code.state_dict().items()}
        full = self.widest.state_dict()
        windows, constants = self._windows[index], self._constants[index]
        return {
            name: (
                self.get_buffer(constants[name]) if name in constants else full[name][windows[name]]
            ).clone()
            for name in code.state_dict()
            if name in windows
        }

    def _at(self, index: int, features: Tensor) -> Tensor:
        """Run the module of a pair."""
        if index == self._widest or str(index) in self.own:
            output: Tensor = self._codes[index](features)
            return output
        self._normalize_alike(self._codes[index])
        constants = self._constants[index]
        tensors = (*self.widest.named_parameters(), *self.widest.named_buffers())
        state = {
            name: self.get_buffer(constants[name])
            if name in constants
            else tensor[self._windows[index][name]]
            for name, tensor in tensors
        }
        output = functional_call(self._codes[index], state, (features,))
        return output

    def _normalize_alike(self, code: nn.Module) -> None:
        """Let code that is lent follow what was set of the widest module's batch normalization.

        Training makes the registered layers synchronized ones (`batch_norm.synchronized`).
        """
        registered = dict(self.widest.named_modules())
        for name, lent in code.named_modules():
            norm = registered.get(name)
            if isinstance(norm, nn.BatchNorm2d) and isinstance(lent, nn.BatchNorm2d):
                lent.__class__, lent.momentum = norm.__class__, norm.momentum

    def _kept_constants(self, index: int) -> dict[str, str]:
        """Keep the buffers that begin as something else than a window: they follow from widths."""
        code = self._codes[index]
        constants: dict[str, str] = {}
        full = dict(self.widest.named_buffers())
        saved = code.state_dict().keys()
        for name, buffer in code.named_buffers():
            if not torch.equal(buffer, full[name][self._windows[index][name]]):
                constants[name] = f"constant{index}_{len(constants)}"
                self.register_buffer(constants[name], buffer, persistent=name in saved)
        return constants

    def _fewest_runs(self, size: tuple[int, int]) -> tuple[Run, ...]:
        """Find the fewest runs that give what each pair's own module would."""
        if len(self.pairs) == 1:
            return (Run(0, (0,)),)
        everything = range(len(self.pairs))
        shared = [index for index in everything if str(index) not in self.own]
        alone = [Run(index, (index,)) for index in everything if str(index) in self.own]
        trial = copy.deepcopy(self).eval()
        _perturb(trial)
        images = torch.randn(2, max(width for width, _ in self.pairs), *size)
        expected = {index: trial._at(index, images[:, : self.pairs[index][0]]) for index in shared}
        plans = []
        for group_of in (_all_alike, _by_input, _by_output):
            groups: dict[int, list[int]] = {}
            for index in shared:
                groups.setdefault(group_of(self.pairs[index]), []).append(index)
            plan: list[Run] = []
            for members in groups.values():
                at = max(members, key=lambda index: self.pairs[index])
                if all(trial._agrees(at, index, images, expected[index]) for index in members):
                    plan.append(Run(at, tuple(members)))
                else:
                    plan += [Run(index, (index,)) for index in members]
            plans.append(plan)
        return (*min(plans, key=len), *alone)

    def _agrees(self, at: int, index: int, images: Tensor, expected: Tensor) -> bool:
        """Tell whether a run for one pair gives what a narrower one would, on its channels."""
        (narrow, width_out), (wide, _) = self.pairs[index], self.pairs[at]
        closed = images[:, :wide].clone()
        closed[:, narrow:] = 0.0
        found = self._at(at, closed)[:, :width_out]
        return found.shape == expected.shape and bool(
            (found - expected).abs().max() <= _TOLERANCE * expected.abs().max()
        )


def _windows(narrow: nn.Module, wide: nn.Module) -> dict[str, Window] | None:
    """Return where the tensors of a module lie in those of a wider one; None where they do not."""
    tensors, full = _tensors(narrow), _tensors(wide)
    if tensors.keys() != full.keys():
        return None
    windows = {}
    for name, tensor in tensors.items():
        there = full[name]
        sizes = zip(tensor.shape, there.shape, strict=False)
        if tensor.ndim != there.ndim or any(size > limit for size, limit in sizes):
            return None
        windows[name] = tuple(slice(size) for size in tensor.shape)
    return windows


def _tensors(module: nn.Module) -> Mapping[str, Tensor]:
    # state_dict has a tied weight under each of its names, named_buffers what is not saved.
    found = {**dict(module.named_buffers()), **module.state_dict()}
    return {name: tensor for name, tensor in found.items() if isinstance(tensor, Tensor)}


def _perturb(module: nn.Module) -> None:
    """Move all parameters off special values, such as zeros that hide what is behind them."""
    generator = torch.Generator().manual_seed(0)
    for parameter in module.parameters():
        parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    as_trained(module)


def _all_alike(_: Pair) -> int:
    return 0


def _by_input(pair: Pair) -> int:
    return pair[0]


def _by_output(pair: Pair) -> int:
    return pair[1]
