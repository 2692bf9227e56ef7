"""Folding batch normalization into convolutions before a network is exported.

The exporter would fold them itself, after it has traced and translated them: doing it first gives
the same graph and makes an export faster (benchmarks/export_folding.py).
"""

from __future__ import annotations

import copy
import itertools
from typing import TypeVar

from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

M = TypeVar("M", bound=nn.Module)


def folded_copy(module: M) -> M:
    """Return a copy in eval mode whose convolutions hold the batch normalizations behind them.

    Only neighbors within an `nn.Sequential` are folded, where nothing can come between the two; all
    else is left to the exporter. The module itself is not touched.
    """
    folded = copy.deepcopy(module).eval()
    for sequence in folded.modules():
        if not isinstance(sequence, nn.Sequential):
            continue
        for (name, first), (next_name, second) in itertools.pairwise(sequence.named_children()):
            if isinstance(first, nn.Conv2d) and isinstance(second, nn.BatchNorm2d):
                setattr(sequence, name, fuse_conv_bn_eval(first, second))
                setattr(sequence, next_name, nn.Identity())
    return folded
