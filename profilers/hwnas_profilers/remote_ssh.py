"""The system's ssh: the command that starts an agent on a board, and what it means when it fails.

ssh is used as it is installed, so that the user's keys, jump hosts and host names work. Nothing is
ever asked at a terminal, and a host key is never accepted on the user's behalf.

Two environment variables say what is not as usual: `HWNAS_SSH`, the command in place of `ssh`, e.g.
`ssh -F other_config`, and `HWNAS_REMOTE_PYTHON`, the board's Python in place of `python3`, e.g.
`venv/bin/python`, seen from the folder that a login lands in.
"""

from __future__ import annotations

import hashlib
import os
import re
import shlex
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hwnas.core.errors import ConfigError

if TYPE_CHECKING:
    from hwnas_profilers.remote_wire import Cut
    from hwnas_profilers.targets import Target

OLDEST_PYTHON = (3, 8)

_OPTIONS = {
    "BatchMode": "yes",
    "StrictHostKeyChecking": "yes",
    "ConnectTimeout": "15",
    "ServerAliveInterval": "5",  # a dead link is noticed after three of these
    "ServerAliveCountMax": "3",
    "LogLevel": "INFO",  # what it says is what an error can be explained with
    # What a user's settings for this host may hold, and an agent has no use for.
    "ControlMaster": "no",
    "ClearAllForwardings": "yes",
    "ForwardAgent": "no",
    "ForwardX11": "no",
    "RemoteCommand": "none",
}

_SSH_FAILED = 255
_NO_PROGRAM = (126, 127)
_KILLED = (134, 137, 139)  # as a shell between ssh and Python would report it
_SSH_SPEAKS = re.compile(
    r"(ssh: |client_loop|kex_|Timeout, |Connection |.*: Permission denied|Host key |Received disc|"
    r".*[Tt]oo many auth|.*(configuration|permissions))"
)
_TOO_OLD = "this Python is too old: "
_TAIL_LINES = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """Why there is no agent at the other end.

    Attributes:
        message: What happened.
        hint: How to mend it; empty where that is plain.
        passing: Whether it may pass by itself, as a lost connection does.
    """

    message: str
    hint: str = ""
    passing: bool = False


def ssh_command(target: Target, agent: bytes) -> list[str]:
    """Return the command that connects to a board and starts an agent which it reads from stdin.

    Args:
        target: A target with a destination.
        agent: The agent's source text, which must be the first that is written to the command.

    Raises:
        ConfigError: `HWNAS_SSH` cannot be split into words.
    """
    text = os.environ.get("HWNAS_SSH", "") or "ssh"
    try:
        command = shlex.split(text)
    except ValueError as error:
        raise ConfigError(
            f"HWNAS_SSH is `{text}`: {error}", hint="it is a command, e.g. HWNAS_SSH='ssh -F file'"
        ) from error
    options = [word for name, value in _OPTIONS.items() for word in ("-o", f"{name}={value}")]
    return [*command, "-T", *options, *_where(target), board_command(board_python(), agent)]


def board_python() -> str:
    """Return the program that is Python on the board."""
    return os.environ.get("HWNAS_REMOTE_PYTHON", "") or "python3"


def board_command(python: str, agent: bytes) -> str:
    """Return a line for any shell that runs an agent read from stdin, if it arrived unchanged."""
    oldest = f"({', '.join(map(str, OLDEST_PYTHON))})"
    program = (
        # It parses in every Python, and sees no modules of the folder that the login lands in.
        "import sys,hashlib;"
        f"sys.version_info<{oldest} and sys.exit('{_TOO_OLD}%d.%d'%sys.version_info[:2]);"
        "sys.path[:]=filter(None,sys.path);"
        f"s=sys.stdin.buffer.read({len(agent)});"
        f"hashlib.sha256(s).hexdigest()=='{hashlib.sha256(agent).hexdigest()}'"
        " or sys.exit('the agent arrived changed or cut');"
        "exec(compile(s,'agent.py','exec'),{'__name__':'__main__'})"
    )
    # `exec` leaves no shell between ssh and Python; -B writes no compiled modules.
    return f'exec {shlex.quote(python)} -B -c "{program}"'


def failure_of(cut: Cut, target: Target) -> Failure:
    """Explain why a connection ended, from ssh's exit status and from what was said."""
    tail = _tail(cut.stderr) or _tail(cut.skipped)
    said = f": {tail}" if tail else ""
    if cut.timeout_s is not None:
        return Failure(
            message=f"no answer for {cut.timeout_s:g} s{said}",
            hint="is the board hung, or out of memory?",
            passing=True,
        )
    if _TOO_OLD in cut.stderr:
        version = cut.stderr.partition(_TOO_OLD)[2].split()[0]
        needed = ".".join(map(str, OLDEST_PYTHON))
        return Failure(
            message=f"{board_python()} on the board is {version}; hwnas needs {needed} or newer",
            hint="install a newer one there, and name it: HWNAS_REMOTE_PYTHON=python3.11",
        )
    if cut.status in _NO_PROGRAM:
        return Failure(
            message=f"there is no {board_python()} on the board{said}",
            hint="install Python there, or name it: HWNAS_REMOTE_PYTHON=/path/to/python",
        )
    if cut.status == _SSH_FAILED and _ssh_words(cut.stderr):
        return _ssh_failure(cut.stderr, target)
    if cut.status < 0:
        return Failure(message=f"ssh was ended by signal {-cut.status}{said}", passing=True)
    if cut.status in (_SSH_FAILED, *_KILLED):
        return Failure(
            message=f"the agent was killed{said}",
            hint="is the board short of memory? `dmesg` there tells",
            passing=True,
        )
    return Failure(message=f"the agent ended with status {cut.status}{said}", passing=cut.greeted)


def login_command(target: Target) -> str:
    """Return how a user reaches the board by hand."""
    return shlex.join(["ssh", *_where(target)[:-2], target.destination])


def _ssh_failure(stderr: str, target: Target) -> Failure:
    words, by_hand = _ssh_words(stderr), login_command(target)
    fatal = {
        "HOST IDENTIFICATION HAS CHANGED|Host key for .* has changed": (
            "THE HOST KEY HAS CHANGED: this is another machine, or someone is between; "
            "nothing was sent",
            "ask who runs the board; only if it was set up anew, remove the old key: "
            f"ssh-keygen -R {_known_as(target)}",
        ),
        "Host key verification failed": (
            "its host key is not known here",
            f"connect once by hand, and compare the fingerprint before you accept it: {by_hand}",
        ),
        "Permission denied|Too many authentication failures": (
            f"ssh may not log in: {words}",
            f"hwnas types no password: install your key, `ssh-copy-id{by_hand[3:]}`, or load it "
            "with ssh-add",
        ),
        "Bad configuration option|Bad owner or permissions|terminating, ": (
            f"ssh refuses its own configuration: {words}",
            "mend the file that it names",
        ),
    }
    for pattern, (message, hint) in fatal.items():
        if re.search(pattern, stderr):
            return Failure(message=message, hint=hint)
    passing = {
        "Could not resolve hostname": "does the name exist? an address works too;",
        "Connection refused": "is sshd running there, and is the port right?",
        "timed out|No route to host|unreachable": "is the board on, and on this network?",
    }
    advice = next((text for words, text in passing.items() if re.search(words, stderr)), "")
    return Failure(message=words, hint=f"{advice} try `{by_hand}`".strip(), passing=True)


def _where(target: Target) -> list[str]:
    """Return the port, and the destination as nothing but one."""
    port = [] if target.port is None else ["-p", str(target.port)]
    return [*port, "--", target.destination]


def _known_as(target: Target) -> str:
    """Return the name under which ssh keeps the board's key."""
    host = target.destination.rpartition("@")[2]
    return host if target.port is None else shlex.quote(f"[{host}]:{target.port}")


def _ssh_words(stderr: str) -> str:
    """Return what ssh itself says, apart from banners and from what the agent's runtime says."""
    return _tail("\n".join(line for line in stderr.splitlines() if _SSH_SPEAKS.match(line)))


def _tail(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return " / ".join(lines[-_TAIL_LINES:])
