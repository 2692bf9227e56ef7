"""The public functions of hwnas, one per command, with the command's names and defaults.

    import hwnas.api
    result = hwnas.api.profile("rnas-cl-s3", "onnxruntime-cpu", Path("table.jsonl"))

A function's module is imported when the function is first asked for, so that importing this one
costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hwnas.pipeline import run
    from hwnas.stages.attack import attack
    from hwnas.stages.bench import bench
    from hwnas.stages.calibrate import calibrate
    from hwnas.stages.certify import certify
    from hwnas.stages.deploy import deploy
    from hwnas.stages.derive import derive
    from hwnas.stages.doctor import doctor
    from hwnas.stages.export import export
    from hwnas.stages.pareto import pareto
    from hwnas.stages.profile import profile
    from hwnas.stages.rebuild import rebuild
    from hwnas.stages.report import report
    from hwnas.stages.search import search
    from hwnas.stages.table import table_diff, table_merge, table_show, table_validate
    from hwnas.stages.teacher import teacher
    from hwnas.stages.train import train
    from hwnas.stages.verify import verify
    from hwnas.study.ensemble import study_ensemble
    from hwnas.study.run import study_run, study_show

__all__ = [
    "attack",
    "bench",
    "calibrate",
    "certify",
    "deploy",
    "derive",
    "doctor",
    "export",
    "pareto",
    "profile",
    "rebuild",
    "report",
    "run",
    "search",
    "study_ensemble",
    "study_run",
    "study_show",
    "table_diff",
    "table_merge",
    "table_show",
    "table_validate",
    "teacher",
    "train",
    "verify",
]

FUNCTIONS = {
    "doctor": "hwnas.stages.doctor:doctor",
    "profile": "hwnas.stages.profile:profile",
    "calibrate": "hwnas.stages.calibrate:calibrate",
    "table_show": "hwnas.stages.table:table_show",
    "table_diff": "hwnas.stages.table:table_diff",
    "table_merge": "hwnas.stages.table:table_merge",
    "table_validate": "hwnas.stages.table:table_validate",
    "teacher": "hwnas.stages.teacher:teacher",
    "search": "hwnas.stages.search:search",
    "derive": "hwnas.stages.derive:derive",
    "pareto": "hwnas.stages.pareto:pareto",
    "train": "hwnas.stages.train:train",
    "export": "hwnas.stages.export:export",
    "rebuild": "hwnas.stages.rebuild:rebuild",
    "verify": "hwnas.stages.verify:verify",
    "deploy": "hwnas.stages.deploy:deploy",
    "bench": "hwnas.stages.bench:bench",
    "attack": "hwnas.stages.attack:attack",
    "certify": "hwnas.stages.certify:certify",
    "report": "hwnas.stages.report:report",
    "run": "hwnas.pipeline:run",
    "study_run": "hwnas.study.run:study_run",
    "study_show": "hwnas.study.run:study_show",
    "study_ensemble": "hwnas.study.ensemble:study_ensemble",
}
"""Where each function is, by the name of its command; in the order of the loop.

`table_show` is the function of `hwnas table show`.
"""


def __getattr__(name: str) -> Any:
    if name not in FUNCTIONS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, _, function = FUNCTIONS[name].partition(":")
    return getattr(importlib.import_module(module), function)


def __dir__() -> list[str]:
    return sorted([*globals(), *FUNCTIONS])
