"""A run as one HTML page that needs nothing else: no script, no font, no request."""

from __future__ import annotations

from importlib import resources
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, StrictUndefined

from hwnas.latency.model import LatencyModel
from hwnas.report import tables
from hwnas.report.accuracy_pictures import attacks_picture, training_picture
from hwnas.report.drawing import drawing_style
from hwnas.report.latency_pictures import predictions_picture, stack_picture
from hwnas.report.numbers import TimeUnit, fixed
from hwnas.report.operators_picture import operators_picture
from hwnas.report.options_picture import options_picture
from hwnas.report.run_files import KINDS, RunFiles, read_run
from hwnas.report.search_pictures import curves_picture
from hwnas.report.settings_text import toml_from_settings
from hwnas.report.tutors_picture import tutors_picture, tutors_sentence
from hwnas.space.registry import space_from_spec
from hwnas.space.spec import spec_from_plain

if TYPE_CHECKING:
    from pathlib import Path

    from hwnas.report.drawing import Picture
    from hwnas.verify.gates import Gate

TEMPLATE = "page.html.j2"


def page_from_run(run: Path) -> str:
    """Make the report of a run.

    Args:
        run: Folder of `hwnas run`; verification must have been reached.

    Returns:
        One HTML document. Equal runs give equal text.

    Raises:
        InputFileError: The run has not got as far as its verification.
        ArtifactError: A part of it was changed, or belongs to another run.
    """
    return page_from_files(read_run(run))


def page_from_files(run: RunFiles) -> str:
    """Make the report of a run that was read."""
    # Autoescaping is on whatever the template's name: class and layer names come from users' files.
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    source = (resources.files("hwnas.report") / TEMPLATE).read_text(encoding="utf-8")
    return environment.from_string(source).render(_context(run))


def verdict(gates: tuple[Gate, ...]) -> str:
    """Say how the gates came out.

    >>> verdict(())
    'No gate was checked'
    """
    failed = [gate.name.replace("_", " ") for gate in gates if not gate.passed]
    if not gates:
        return "No gate was checked"
    if not failed:
        return f"All {len(gates)} gates passed"
    return f"{len(failed)} of {len(gates)} gates failed: {', '.join(failed)}"


def pictures(run: RunFiles, unit: TimeUnit) -> dict[str, Picture]:
    """Draw the page's pictures, by name."""
    header = run.table.header
    spec = spec_from_plain(header.space_spec, source=f"{run.table.path} (space_spec)")
    space = space_from_spec(spec, batch=header.batch, dtype=header.dtype)
    latency = LatencyModel(space, run.table)
    with drawing_style():
        drawn = (
            operators_picture(run, latency, unit),
            stack_picture(run, latency, unit),
            predictions_picture(run, latency, unit),
            curves_picture(run, unit),
            options_picture(run),
            tutors_picture(run),
            attacks_picture(run),
            training_picture(run),
        )
    return {picture.name: picture for picture in drawn if picture is not None}


def _context(run: RunFiles) -> dict[str, Any]:
    found = run.verification
    unit = TimeUnit.for_ms(run.derivation.budget_ms)
    calibration = run.table.calibration
    return {
        "verdict": verdict(found.gates),
        "passed": found.passed and bool(found.gates),
        "space": run.derivation.space.name,
        "target": run.derivation.target,
        "data": run.card.data.source,
        "device": run.manifests["verification"].provenance.device.name,
        "facts": tables.facts(run, unit),
        "accuracies": tables.accuracy_rows(run),
        "norm": found.threat.norm,
        "eps": tables.eps_text(found.threat),
        "gates": tables.gate_rows(run),
        "pictures": pictures(run, unit),
        "tutors": tutors_sentence(run),
        "predictors": tables.predictor_rows(run),
        "calibration": calibration,
        "noise_floor": fixed(calibration.noise_floor_percent, 2) if calibration else "",
        "masking": tables.masking_rows(run),
        "masking_n": found.masking.n if found.masking else 0,
        "about": tables.device_rows(run),
        "hashes": tables.hash_rows(run),
        "unchecked": tables.unchecked(run),
        "settings": toml_from_settings(run.settings),
        "run_path": str(run.path),
        "calls": [run.manifests[name].call for name in KINDS if run.manifests[name].call],
    }
