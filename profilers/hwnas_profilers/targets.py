"""Targets: what a target string means, and whether it can be measured here.

    [ssh://[user@]host[:port]/]NAME          e.g. onnxruntime-cpu, ssh://pi@board/onnxruntime-cpu

NAME says runtime, device and precision; without a precision it is fp32. Looking is cheap and safe:
packages are found without importing them, and no device is touched.
"""

from __future__ import annotations

import ctypes.util
import functools
import re
import shutil
from dataclasses import dataclass
from typing import Literal

from hwnas.core.environment import package_version
from hwnas.core.errors import TargetError, nearest

_NO_DRIVER = "no NVIDIA driver here (libcuda is not found)"
# A user's ssh configuration may hand user and host to a shell (`%r` and `%h` of ProxyCommand), so
# what a shell takes for more than a name is refused, as OpenSSH 9.6 does.
_UNSAFE = r"@/\s:\[\]'\"`$\\;&<>|(){}*?!\x00-\x1f\x7f"
_SSH = re.compile(
    rf"ssh://(?:(?P<user>[^{_UNSAFE}]+)@)?(?P<host>\[[0-9A-Fa-f:.]+\]|[^{_UNSAFE}]+)"
    r"(?::(?P<port>[0-9]{1,5}))?/(?P<name>[^/\s]+)"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Runtime:
    """A runtime on a kind of device in a precision: what a NAME stands for.

    Attributes:
        runner: Its class, `module:name`. It takes a module and a shape if `takes` is `torch`, else
            the bytes of an ONNX model, then the options below and, on a CPU, `threads`.
        takes: What it compiles.
        device: What it computes on.
        precision: Precision of its arithmetic.
        packages: Distributions that it needs; of alternatives, parted by `|`, any one.
        install: How to get them.
        wrong_build: What the version of a build without CUDA holds; empty where all will do.
        remote: Whether a board can be measured with it over ssh.
    """

    runner: str
    takes: Literal["onnx", "torch"]
    device: Literal["cpu", "cuda"]
    precision: str = "fp32"
    packages: tuple[str, ...]
    install: str
    wrong_build: str = ""
    remote: bool = False

    @property
    def options(self) -> dict[str, str]:
        """Keyword arguments of the runner, `threads` aside."""
        both = self.runner.endswith((":TorchRunner", ":OnnxRuntimeRunner"))
        return {"precision": self.precision} | ({"device": self.device} if both else {})

    @property
    def symmetric(self) -> bool:
        """Whether it takes quantized models without zero points only."""
        return self.runner.endswith(":TensorRTRunner")


def _onnxruntime_cpu(precision: str) -> Runtime:
    return Runtime(
        runner="hwnas_export.onnxruntime_runner:OnnxRuntimeRunner",
        takes="onnx",
        device="cpu",
        precision=precision,
        packages=("onnxruntime|onnxruntime-gpu",),
        install="pip install onnxruntime",
        remote=True,
    )


def _onnxruntime_cuda(precision: str) -> Runtime:
    return Runtime(
        runner="hwnas_export.onnxruntime_runner:OnnxRuntimeRunner",
        takes="onnx",
        device="cuda",
        precision=precision,
        packages=("onnxruntime-gpu",),
        install="pip uninstall onnxruntime; pip install onnxruntime-gpu",
    )


def _torch(device: Literal["cpu", "cuda"], precision: str) -> Runtime:
    on_gpu = device == "cuda"
    cuda_build = "a CUDA build of torch, see https://pytorch.org/get-started/locally"
    return Runtime(
        runner="hwnas_export.torch_runner:TorchRunner",
        takes="torch",
        device=device,
        precision=precision,
        packages=("torch",),
        install=cuda_build if on_gpu else "pip install torch",
        wrong_build="+cpu" if on_gpu else "",
    )


def _tensorrt(precision: str) -> Runtime:
    return Runtime(
        runner="hwnas_export.tensorrt_runner:TensorRTRunner",
        takes="onnx",
        device="cuda",
        precision=precision,
        packages=("tensorrt|tensorrt-cu12|tensorrt-cu13|tensorrt-rtx", "pycuda"),
        install='pip install "hwnas[tensorrt]", or "hwnas[tensorrt-rtx]" for RTX GPUs; pycuda is '
        "built from source and needs the CUDA toolkit and a C++ compiler",
        remote=precision != "int8",
    )


def _openvino(precision: str) -> Runtime:
    return Runtime(
        runner="hwnas_export.openvino_runner:OpenVinoRunner",
        takes="onnx",
        device="cpu",
        precision=precision,
        packages=("openvino",),
        install='pip install "hwnas[openvino]"',
    )


RUNTIMES: dict[str, Runtime] = {
    "onnxruntime-cpu": _onnxruntime_cpu("fp32"),
    "onnxruntime-cpu-int8": _onnxruntime_cpu("int8"),
    "onnxruntime-cpu-fp16": _onnxruntime_cpu("fp16"),
    "onnxruntime-cuda": _onnxruntime_cuda("fp32"),
    "onnxruntime-cuda-fp16": _onnxruntime_cuda("fp16"),
    "torch-cpu": _torch("cpu", "fp32"),
    "torch-cpu-bf16": _torch("cpu", "bf16"),
    "torch-cuda": _torch("cuda", "fp32"),
    "torch-cuda-fp16": _torch("cuda", "fp16"),
    "torch-cuda-bf16": _torch("cuda", "bf16"),
    "tensorrt-fp32": _tensorrt("fp32"),
    "tensorrt-fp16": _tensorrt("fp16"),
    "tensorrt-int8": _tensorrt("int8"),
    "openvino-cpu": _openvino("fp32"),
    "openvino-cpu-bf16": _openvino("bf16"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A parsed target string.

    Attributes:
        name: Key of `RUNTIMES`.
        destination: `[user@]host` as ssh takes it; empty for this machine.
        port: ssh port; None for ssh's own choice.
    """

    name: str
    destination: str = ""
    port: int | None = None

    def __str__(self) -> str:
        return f"{self.host}/{self.name}" if self.host else self.name

    @property
    def host(self) -> str:
        """Where it is reached, `ssh://[user@]host[:port]`; empty for this machine."""
        if not self.destination:
            return ""
        user, at, host = self.destination.rpartition("@")
        if ":" in host:
            host = f"[{host}]"
        return f"ssh://{user}{at}{host}" + (f":{self.port}" if self.port else "")

    @property
    def runtime(self) -> Runtime:
        """What the name stands for."""
        return RUNTIMES[self.name]


@dataclass(frozen=True, slots=True, kw_only=True)
class TargetStatus:
    """Whether a target can be used here.

    Attributes:
        name: The target, or what targets need.
        usable: Whether hwnas can profile on it here and now.
        version: Version of the package behind it; empty where it is not installed.
        reason: Why it is not usable; empty where it is.
        fix: What would make it usable; empty where nothing is needed.
    """

    name: str
    usable: bool
    version: str
    reason: str = ""
    fix: str = ""


def parse_target(text: str) -> Target:
    """Parse a target string.

    Raises:
        TargetError: It does not parse, or names no runtime that hwnas knows.

    >>> parse_target("ssh://pi@board:2222/onnxruntime-cpu")
    Target(name='onnxruntime-cpu', destination='pi@board', port=2222)
    """
    if "://" not in text and "/" not in text:
        _check_name(text, text)
        return Target(name=text)
    match = _SSH.fullmatch(text)
    if match is None:
        raise TargetError(
            f"target `{text}` cannot be read",
            hint="a board is ssh://[user@]host[:port]/NAME, e.g. ssh://pi@raspberrypi.local/"
            "onnxruntime-cpu",
        )
    # ssh takes what begins with a dash for an option.
    if any((match[part] or "").startswith("-") for part in ("user", "host")):
        raise TargetError(f"target `{text}` cannot be read: a host does not begin with a dash")
    _check_name(match["name"], text)
    port = int(match["port"]) if match["port"] else None
    if port is not None and not 0 < port < 65_536:
        raise TargetError(f"target `{text}` cannot be read: {port} is no port (1 to 65535)")
    if not RUNTIMES[match["name"]].remote:
        able = ", ".join(name for name, runtime in RUNTIMES.items() if runtime.remote)
        raise TargetError(
            f"hwnas cannot measure {match['name']} over ssh", hint=f"over ssh it can: {able}"
        )
    host = match["host"].strip("[]")
    destination = f"{match['user']}@{host}" if match["user"] else host
    return Target(name=match["name"], destination=destination, port=port)


def target_statuses() -> tuple[TargetStatus, ...]:
    """Return the status of every target that hwnas knows of, in the order of `RUNTIMES`."""
    return (*(_status(name, runtime) for name, runtime in RUNTIMES.items()), _ssh_status())


def target_names() -> tuple[str, ...]:
    """Return the names of the targets of this version of hwnas."""
    return tuple(RUNTIMES)


def require_target(text: str) -> Target:
    """Parse a target string, and make sure that it can be measured from here.

    Of a board only ssh is looked for: what the board has is known once it is reached.

    Raises:
        TargetError: It is unknown, or cannot be used here.
    """
    target = parse_target(text)
    status = _ssh_status() if target.destination else _status(target.name, target.runtime)
    if not status.usable:
        raise TargetError(f"target `{text}` cannot be used here: {status.reason}", hint=status.fix)
    return target


def _check_name(name: str, text: str) -> None:
    if name not in RUNTIMES:
        similar = nearest(name, RUNTIMES)
        known = f"known: {', '.join(RUNTIMES)}"
        hint = f"did you mean `{similar[0]}`? {known}" if similar else known
        raise TargetError(f"there is no target `{text}`", hint=hint)


def _status(name: str, runtime: Runtime) -> TargetStatus:
    reasons, fixes, versions = [], [], []
    for package in runtime.packages:
        found = [version for each in package.split("|") if (version := package_version(each))]
        versions += found[:1]
        if not found:
            reasons.append(f"the package {package.partition('|')[0]} is not installed")
        elif runtime.wrong_build and runtime.wrong_build in found[0]:
            reasons.append(f"{package} {found[0]} is a build without CUDA")
    if reasons:
        fixes.append(f"install it: {runtime.install}")
    if runtime.device == "cuda" and not _has_nvidia_driver():
        reasons.append(_NO_DRIVER)
        fixes.append("use a machine with an NVIDIA GPU and driver")
    return TargetStatus(
        name=name,
        usable=not reasons,
        version=", ".join(versions),
        reason="; ".join(reasons),
        fix="; ".join(fixes),
    )


def _ssh_status() -> TargetStatus:
    found = shutil.which("ssh") is not None
    return TargetStatus(
        name="ssh://",
        usable=found,
        version="",
        reason="" if found else "the program `ssh` is not installed",
        fix="" if found else "install an OpenSSH client with the system's package manager",
    )


@functools.cache
def _has_nvidia_driver() -> bool:
    return any(ctypes.util.find_library(name) for name in ("cuda", "nvcuda"))
