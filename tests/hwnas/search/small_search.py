"""A small search as a program of its own, which one process computes, or several, or one is killed.

    python small_search.py FOLDER < QUESTIONS

It searches once itself, into a folder, by which time all that a search needs is imported and has
been used. Each line of its input is then a JSON object that asks for one more, or many, in forks of
this process: to import PyTorch in every one of them took longer than to search. It answers with a
line of JSON too.

It computes in float64, so that what differs between two runs is the method and not the rounding,
which training amplifies.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import tempfile
import time
import traceback
import uuid
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from hwnas.core.environment import provenance
from hwnas.data.images import ImageData
from hwnas.data.sources import DataConfig, load_data
from hwnas.distill.teacher import Teacher
from hwnas.distill.teacher_network import TeacherNetwork, TeacherSpec
from hwnas.latency.resources import SpaceCosts
from hwnas.search.budget import Budgets
from hwnas.search.derive import best_genotype
from hwnas.search.rnas_cl import SearchConfig, search_supernet
from hwnas.space.channel.space import ChannelSpace
from hwnas.space.channel.spec import ChannelSpec, StageSpec
from hwnas.space.operators import macs_of_operator
from hwnas.training import loop
from hwnas.training.processes import Processes
from hwnas_profilers.records import Measurement, Statistics, TableHeader
from hwnas_profilers.table import LatencyTable

if TYPE_CHECKING:
    from collections.abc import Callable

WIDTHS = ((8, 4), (12, 8, 4), (16, 12, 8))
EPOCHS = 6


class DoubleSpace:
    """A space whose supernet computes in float64."""

    def __init__(self, space: ChannelSpace) -> None:
        self._space = space

    def __getattr__(self, name: str) -> Any:
        return getattr(self._space, name)

    def supernet(self) -> torch.nn.Module:
        return self._space.supernet().double()


def search(folder: Path, settings: dict[str, Any] | None = None) -> None:
    """Search, and let the first process write what came out.

    Args:
        folder: Where to.
        settings: Those of the search that are others than usual.
    """
    stages = tuple(
        StageSpec(blocks=1, widths=widths, stride=2 if index else 1)
        for index, widths in enumerate(WIDTHS)
    )
    space: Any = DoubleSpace(
        ChannelSpace(
            ChannelSpec(
                name="small",
                image_shape=(1, 16, 16),
                classes=10,
                stem=8,
                stem_stride=2,
                expansion=2,
                stages=stages,
            )
        )
    )
    costs = SpaceCosts(space, table_of(space))
    low, high = costs.latency.range_ms()
    digits = load_data(DataConfig())
    draw = torch.Generator().manual_seed(0)
    data = ImageData(
        name="few digits",
        train=digits.train.subset(73, draw),
        validation=digits.validation.subset(41, draw),
        test=digits.test,
        class_names=digits.class_names,
    )
    torch.manual_seed(1)
    spec = TeacherSpec(image_shape=(1, 16, 16), classes=10, width=4, blocks=(1, 1))
    network = TeacherNetwork(spec)
    teacher = Teacher(
        network, network.tap_names, image_shape=(1, 16, 16), classes=10, attention_size=4
    )
    budgets = Budgets(latency_ms=low + 0.4 * (high - low))
    processes = Processes(accelerator="cpu")
    outcome = search_supernet(
        space,
        costs,
        teacher,
        data,
        DataConfig(pad=1, flip=True),
        replace(
            SearchConfig(epochs=EPOCHS, warmup_epochs=1, batch=24, attention_size=4),
            **(settings or {}),
        ),
        budgets=budgets,
        seed=3,
        checkpoint=folder / "checkpoint",
        inputs={},
        processes=processes,
    )
    scores = [torch.tensor(row).numpy() for row in outcome.log_probabilities]
    if processes.is_first:
        result = {
            "genotype": best_genotype(costs, scores, budgets).widths,
            "architecture": outcome.log_probabilities,
            "tutors": outcome.tutor_probabilities,
            "history": outcome.history,
            "weights": [float(part.abs().sum()) for part in outcome.supernet.parameters()],
            "statistics": [float(part.double().sum()) for part in outcome.supernet.buffers()],
            "processes": processes.count,
        }
        (folder / "outcome.json").write_text(json.dumps(result))


def table_of(space: ChannelSpace) -> LatencyTable:
    def measured(us: float) -> Statistics:
        return Statistics(
            n=20, median_us=us, low_us=us, high_us=us, min_us=us, p10_us=us, p90_us=us
        )

    keys = [operator.key for operator in space.operators()]
    return LatencyTable(
        path=Path("table.jsonl"),
        header=TableHeader(
            target="onnxruntime-cpu",
            space="small",
            space_spec={},
            space_fingerprint=space.spec.fingerprint,
            threads=1,
            batch=1,
            dtype="fp32",
            settings={},
            provenance=provenance(),
        ),
        measurements={
            key: Measurement(key=key, statistics=measured(1e-3 * macs_of_operator(key)))
            for key in keys
        },
        calibration=None,
    )


def die_at(rank: int, at: int) -> None:
    """Let one process kill itself at one of its steps."""
    step, taken = loop.Epoch.step, [0]

    def fatal_step(self: loop.Epoch, loss: torch.Tensor, steps: int) -> float:
        taken[0] += 1
        if int(os.environ.get("RANK", "0")) == rank and taken[0] == at:
            os.kill(os.getpid(), signal.SIGKILL)
        return step(self, loss, steps)

    loop.Epoch.step = fatal_step  # type: ignore[method-assign]


def kill(folder: Path, times: int, seed: int) -> None:
    """Begin the search again and again, and kill it after a random time.

    Each search is a fork of this process, which has imported all that a search needs by then: the
    time before a kill is spent on searching. A search that ended before it was killed, as one may
    on a machine whose speed moves, is no kill and is begun anew.
    """
    draw = random.Random(seed)
    whole = folder / "whole"
    whole.mkdir()
    started = time.monotonic()
    os.waitpid(forked(whole), 0)
    whole_s = time.monotonic() - started
    kills: list[dict[str, float]] = []
    while len(kills) < times:
        child = forked(folder)
        after_s = draw.uniform(0.0, 0.6 * whole_s)
        time.sleep(after_s)
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        if not os.WIFSIGNALED(status):
            if os.waitstatus_to_exitcode(status):
                raise RuntimeError(f"a search failed: status {status}")
            whole_s *= 0.8
            begin_anew(folder)
            continue
        epochs = 0
        if (folder / "checkpoint").exists():
            epochs = len(torch.load(folder / "checkpoint", weights_only=True)["history"])
        kills.append({"after_s": after_s, "epochs": epochs})
        if epochs == EPOCHS:  # there is nothing left to interrupt
            begin_anew(folder)
    (folder / "kills.json").write_text(json.dumps(kills))
    search(folder)


def begin_anew(folder: Path) -> None:
    (folder / "checkpoint").unlink()
    (folder / "outcome.json").unlink(missing_ok=True)


def forked(folder: Path) -> int:
    child = os.fork()
    if child == 0:
        search(folder)
        os._exit(0)
    return child


def launch(
    folder: Path, processes: int, fatal: tuple[int, int] | None, settings: dict[str, Any]
) -> None:
    """Search in several processes, as `torchrun --standalone` does; these are forks.

    Args:
        folder: Where to.
        processes: How many.
        fatal: Which of them kills itself, and at which step.
        settings: Those of the search that are others than usual.
    """
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        run_id=str(uuid.uuid4()),
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,
        start_method="fork",
    )
    elastic_launch(config, one_of_several)(folder, fatal, settings)


def one_of_several(folder: Path, fatal: tuple[int, int] | None, settings: dict[str, Any]) -> None:
    if fatal is not None:
        die_at(*fatal)
    search(folder, settings)


def answered(work: Callable[..., None], arguments: dict[str, Any]) -> tuple[int, str]:
    """Do work in a fork of this process; return its exit code and what it said."""
    with tempfile.TemporaryFile("w+") as said:
        child = os.fork()
        if child == 0:
            os.dup2(said.fileno(), 1)
            os.dup2(said.fileno(), 2)
            code = 0
            try:
                work(**arguments)
            except BaseException:
                traceback.print_exc()
                code = 1
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
        _, status = os.waitpid(child, 0)
        said.seek(0)
        return os.waitstatus_to_exitcode(status), said.read()


def main() -> None:
    torch.set_default_dtype(torch.float64)
    torch.set_num_threads(1)
    search(Path(sys.argv[1]))
    works: dict[str, Callable[..., None]] = {"search": search, "launch": launch, "kill": kill}
    for line in sys.stdin:
        question = json.loads(line)
        work = works[question.pop("work")]
        question["folder"] = Path(question["folder"])
        code, said = answered(work, question)
        sys.stdout.write(json.dumps({"code": code, "said": said}) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
