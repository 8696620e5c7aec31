"""Programs in a confined child, and the proof that it is confined."""

from __future__ import annotations

import os
import secrets
import select
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

from pfl_platform.errors import UserError

CHILD = Path(__file__).with_name("child.py")
MEBIBYTE = 1 << 20
STARTING = 10.0
"""Seconds that a child may take beyond those of its program, to start on a busy machine."""

MOST_SAID = 4096
"""Bytes that are read of a child, which may write without end."""

Ending = Literal["passed", "failed", "timeout"]


@dataclass(frozen=True)
class Limits:
    """What a program may use: seconds of a processor and of the clock, and memory with the interpreter's own."""

    seconds: int = 5
    memory_mb: int = 512


def run(program: str, limits: Limits = Limits()) -> Ending:
    """Runs a Python program without network, files to write, other processes, or an end that is too far.

    `passed`: it came to its end without an exception. Raises `UserError` where the machine cannot confine it.
    """
    word = secrets.token_hex(16)
    message = f"{word}\n{limits.seconds} {limits.memory_mb * MEBIBYTE}\n{program}"
    child = subprocess.Popen(
        [sys.executable, "-I", "-S", "-B", str(CHILD)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={},
        cwd="/",
        start_new_session=True,
    )
    try:
        said, ended = _talk(child, message.encode("utf-8", "replace"), limits.seconds + STARTING)
    finally:
        child.kill()
        child.wait()
    if said.startswith("confined: "):
        raise UserError(f"Generated code is not run: this machine cannot confine it ({said[10:]}).")
    if said == word:
        return "passed"
    return "timeout" if not ended or child.returncode in (-signal.SIGKILL, -signal.SIGXCPU) else "failed"


def _talk(child: subprocess.Popen[bytes], message: bytes, seconds: float) -> tuple[str, bool]:
    """What the child says, `MOST_SAID` bytes at most, and whether it came to its end in time."""
    assert child.stdin is not None
    assert child.stdout is not None
    end = time.monotonic() + seconds
    with child.stdin as into, child.stdout as out:
        with suppress(BrokenPipeError):  # it ended before it had read everything
            into.write(message)
            into.flush()
            into.close()
        said = b""
        while len(said) <= MOST_SAID:
            if not select.select([out], [], [], max(end - time.monotonic(), 0.0))[0]:
                return "", False
            piece = os.read(out.fileno(), MOST_SAID)
            if not piece:
                with suppress(subprocess.TimeoutExpired):
                    child.wait(STARTING)  # so that it is known how it ended
                return said.decode("utf-8", "replace"), True
            said += piece
    return "", True


PROOF = """
import os, socket, threading

def refused(act, *arguments):
    try:
        act(*arguments)
    except (PermissionError, RuntimeError, MemoryError):
        return True
    return False

assert refused(socket.socket)
assert refused(os.fork)
assert refused(os.execv, "/bin/true", ["true"])
assert refused(os.kill, os.getppid(), 0)
assert refused(open, "/tmp/pfl-sandbox-proof", "w")
assert refused(os.unlink, "/tmp/pfl-sandbox-proof")
assert refused(os.mkdir, "/tmp/pfl-sandbox-proof")
assert refused(threading.Thread(target=len).start)
assert refused(bytearray, 1 << 40)
assert open(os.__file__).read(1)
"""
"""A program that comes to its end only where every way out is closed."""


@cache
def require() -> None:
    """Raises `UserError` where this machine does not confine what is run; tried once per process."""
    if run(PROOF) != "passed":
        raise UserError("Generated code is not run: on this machine the sandbox does not hold what it should.")
