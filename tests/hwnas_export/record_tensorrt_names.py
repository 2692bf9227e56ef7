"""Record what names TensorRT's bindings have: for versions whose libraries no test machine has.

    pip download --no-deps -d wheels tensorrt-cu12-bindings==10.3.0
    pip download --no-deps -d wheels tensorrt-cu13-bindings==10.16.1.11
    pip download --no-deps -d wheels tensorrt-cu13-bindings==11.4.0.106
    python tests/hwnas_export/record_tensorrt_names.py wheels/*.whl

The bindings import TensorRT's libraries, which these wheels do not hold. So they are loaded beside
empty libraries with the few functions that they link to, made with `cc`: that shows which names
there are, and nothing of what they do. The wheels must be for this Python. What is installed as
`tensorrt_rtx` is recorded too.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from hwnas_export.tensorrt_api import TRT_NAMES, TRT_OPTIONAL_NAMES

RECORD = Path(__file__).with_name("tensorrt_names.json")
USED = (*TRT_NAMES, *TRT_OPTIONAL_NAMES)
OWNERS = sorted(
    {name.partition(".")[0] for name in USED} | {name.rpartition(".")[0] for name in USED}
)

LIBRARIES = ("libnvinfer", "libnvonnxparser", "libnvinfer_plugin")
FUNCTIONS = (
    "createInferBuilder_INTERNAL",
    "createInferRefitter_INTERNAL",
    "createInferRuntime_INTERNAL",
    "createNvOnnxParserRefitter_INTERNAL",
    "createNvOnnxParser_INTERNAL",
    "getBuilderPluginRegistry",
    "getNvOnnxParserVersion",
    "getPluginRegistry",
    "initLibNvInferPlugins",
)
"""All that the bindings of 10.3 to 11.4 link to."""

LISTING = """
import functools, importlib, json, sys
module = importlib.import_module(sys.argv[1])
members = {}
for name in sys.argv[2:]:
    try:
        owner = functools.reduce(getattr, name.split("."), module)
    except AttributeError:
        continue
    if isinstance(owner, type):
        members[name] = " ".join(each for each in dir(owner) if not each.startswith("_"))
print(json.dumps([module.__version__, members]))
"""


def names_of(module: str, folder: str = "", libraries: str = "") -> tuple[str, dict[str, str]]:
    """Return version and members by class of a module, imported in a process of its own."""
    answer = subprocess.run(
        [sys.executable, "-c", LISTING, module, *filter(None, OWNERS)],
        env={**os.environ, "PYTHONPATH": folder, "LD_LIBRARY_PATH": libraries},
        capture_output=True,
        text=True,
        check=True,
    )
    version, members = json.loads(answer.stdout)
    return version, members


def names_in_wheel(wheel: Path) -> tuple[str, dict[str, str]]:
    """Return version and members by class of bindings whose libraries are not here."""
    with tempfile.TemporaryDirectory() as folder:
        zipfile.ZipFile(wheel).extractall(folder)
        major = wheel.name.split("-")[1].partition(".")[0]
        source = Path(folder, "empty.c")
        source.write_text("".join(f"void *{each}(void) {{ return 0; }}\n" for each in FUNCTIONS))
        for library in LIBRARIES:
            name = f"{library}.so.{major}"
            command = ["cc", "-shared", "-fPIC", f"-Wl,-soname,{name}", "-o", name, source.name]
            subprocess.run(command, cwd=folder, check=True)
        return names_of("tensorrt_bindings", folder, folder)


def main() -> None:
    """Record the wheels that are named, and the kind for RTX that is installed."""
    records = {}
    for wheel in map(Path, sys.argv[1:]):
        version, members = names_in_wheel(wheel)
        records[f"tensorrt {version}"] = members
    version, members = names_of("tensorrt_rtx")
    records[f"tensorrt_rtx {version}"] = members
    RECORD.write_text(json.dumps(records, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
