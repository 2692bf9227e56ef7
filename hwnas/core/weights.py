"""Weights as safetensors: nothing that a user hands over is ever unpickled."""

from __future__ import annotations

import os
from contextlib import contextmanager
from typing import TYPE_CHECKING

from hwnas.core.artifacts import write_atomically
from hwnas.core.errors import ArtifactError, InputFileError, nearest

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from torch import nn


def write_weights(path: Path, network: nn.Module) -> None:
    """Write a network's parameters and buffers, atomically.

    Raises:
        InputFileError: The file cannot be written.
    """
    import torch
    from safetensors.torch import save

    # Copies, as safetensors refuses tensors that share memory, e.g. tied weights.
    state = {
        name: value.detach().clone(memory_format=torch.contiguous_format)
        for name, value in network.state_dict().items()
    }
    write_atomically(path, save(state))


def read_weights(path: Path, network: nn.Module) -> None:
    """Load weights into a network of the same shape.

    Raises:
        InputFileError: The file is missing or unreadable.
        ArtifactError: It is no safetensors file, or its tensors are not the network's.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputFileError(f"{path} cannot be read: {error.strerror}") from error
    try:
        state = load(data)
    except SafetensorError as error:
        raise ArtifactError(
            f"{path} is no safetensors file: {error}",
            hint="convert a checkpoint: safetensors.torch.save_file(model.state_dict(), PATH)",
        ) from error
    own = network.state_dict()
    for name in own:
        if name not in state:
            similar = nearest(name, state)
            hint = f"the nearest name in the file is `{similar[0]}`" if similar else ""
            raise ArtifactError(f"{path} holds no tensor `{name}`", hint=hint)
        if state[name].shape != own[name].shape:
            raise ArtifactError(
                f"{path}: `{name}` has shape {list(state[name].shape)}, "
                f"the network needs {list(own[name].shape)}"
            )
    extra = sorted(set(state) - set(own))
    if extra:
        raise ArtifactError(
            f"{path} holds {len(extra)} tensors that the network has not: {', '.join(extra[:3])}"
        )
    network.load_state_dict(state)


@contextmanager
def tensors_only() -> Iterator[None]:
    """Have torch refuse pickled objects, whatever the library that loads weights asks it for."""
    name = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
    before = os.environ.get(name)
    os.environ[name] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before
