"""`hwnas profile --model`: any model -> where its latency goes, operator by operator."""

from __future__ import annotations

import csv
import dataclasses
import io
from typing import TYPE_CHECKING

from hwnas.core.progress import SILENT, Progress

if TYPE_CHECKING:
    from pathlib import Path

    from hwnas_profilers.breakdown.values import Breakdown
    from hwnas_profilers.timing import TimingSettings

KIND = "profile"
"""What the artifact's manifest says of it: it is made by `hwnas profile`."""

JSON_FILE = "breakdown.json"
CSV_FILE = "breakdown.csv"
SVG_FILE = "breakdown.svg"
PNG_FILE = "breakdown.png"


def make_breakdown(
    model: Path,
    target: str,
    out: Path | None = None,
    *,
    input_shape: tuple[int, ...] | None = None,
    threads: int = 1,
    batch: int = 1,
    settings: TimingSettings | None = None,
    progress: Progress = SILENT,
) -> Breakdown:
    """Time a model on a target, and split its latency over the operators that the runtime made.

    Args:
        model: An ONNX file; `path/to/file.py:callable` or `package.module:callable`, where the
            callable takes nothing and returns a torch module; or a `.pt2` exported program.
        target: What to measure on: onnxruntime-cpu, torch-cpu or openvino-cpu.
        out: A folder for the result as JSON, CSV and a picture; by default nothing is written. A
            breakdown that stands there is replaced, anything else is refused.
        input_shape: Shape of the input, batch first, where the model leaves it open. A callable
            always needs it.
        threads: Threads within an operator.
        batch: Images per call, where the model leaves it open.
        settings: How long to time; by default as long as a whole network is.
        progress: Where to report.

    Raises:
        InputFileError: The model does not exist or is none, or something else stands in `out`.
        ConfigError: The model is a pickle, or its inputs are open.
        TargetError: The target cannot be used here, or gives no times of single operators.
        ExportError: The runtime rejects the model.
        ArtifactError: Another stage's artifact stands in `out`, or one that was changed.
    """
    from hwnas.core.artifacts import (
        MANIFEST,
        ManifestDraft,
        check_place,
        new_artifact,
        read_manifest,
    )
    from hwnas.core.decoding import encode_json
    from hwnas.core.errors import ConfigError
    from hwnas.stages.calls import call_text
    from hwnas_profilers.breakdown.measure import measure_breakdown, require_breakdown_target
    from hwnas_profilers.breakdown.model import model_source
    from hwnas_profilers.timing import TimingSettings

    for name, count in (("threads", threads), ("batch", batch)):
        if count < 1:
            raise ConfigError(f"{name} is {count}, not at least 1")
    require_breakdown_target(target)
    if out is not None:
        check_place(out)
        if (out / MANIFEST).is_file():
            read_manifest(out, kind=KIND)
    settings = settings or TimingSettings.for_networks()
    source = model_source(model)
    breakdown = measure_breakdown(
        source,
        target,
        input_shape=input_shape,
        threads=threads,
        batch=batch,
        settings=settings,
        progress=progress,
    )
    if out is None:
        return breakdown

    from hwnas.report.breakdown_picture import breakdown_png, breakdown_svg

    breakdown = dataclasses.replace(breakdown, out=str(out))
    draft = ManifestDraft(
        kind=KIND,
        call=call_text(
            "profile",
            model=model,
            target=target,
            out=out,
            input_shape=input_shape,
            threads=threads,
            batch=batch,
        ),
        settings={"timing": dataclasses.asdict(settings)},
        inputs=source.digests,
    )
    with new_artifact(out, draft) as folder:
        (folder / JSON_FILE).write_bytes(encode_json(breakdown, indent=2))
        (folder / CSV_FILE).write_bytes(csv_from_breakdown(breakdown))
        (folder / SVG_FILE).write_bytes(breakdown_svg(breakdown))
        (folder / PNG_FILE).write_bytes(breakdown_png(breakdown))
    return breakdown


def csv_from_breakdown(breakdown: Breakdown) -> bytes:
    """Write all nodes as a table, in the order of execution; what is not known is empty."""
    text = io.StringIO(newline="")
    rows = []
    for each in breakdown.nodes:
        row = dataclasses.asdict(each)
        node = row.pop("node")
        rows.append({"index": row.pop("index"), **node, **row})
    writer = csv.DictWriter(text, fieldnames=list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()
