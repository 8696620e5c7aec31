"""Starts DeepSpeed's launcher, which starts the ranks; what can be wrong with a launch is found before.

Imports neither torch nor DeepSpeed: the launcher is a process of its own.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from pfl_platform.errors import UserError

NOTE = "PFL_LAUNCH_NOTE"
"""Names the file in which rank 0 leaves its exit code: what it said needs no second sentence."""
MODULE = "pfl_platform"
"""What every rank runs, with the words of the command."""
REACH = 10
"""Seconds for a machine of the hostfile to answer."""
GRACE = 45.0
"""Seconds in which ranks have to end once they were told to; DeepSpeed's launcher kills after 30."""


@dataclass(frozen=True)
class Machines:
    """Where ranks are started. ranks: on each machine. hostfile: machines, as DeepSpeed reads them; None: this one."""

    ranks: int
    hostfile: Path | None = None


def check_shape(machines: Machines, shards: int) -> None:
    hosts = 1 if machines.hostfile is None else len(read_hostfile(machines.hostfile))
    size = machines.ranks * hosts
    if shards > size:
        raise UserError(f"{shards} shards need as many ranks; there are {size}.")
    if size % shards:
        raise UserError(f"{size} ranks cannot be divided into groups of {shards} shards.")


def read_hostfile(file: Path) -> dict[str, int]:
    """Machine -> slots, of lines such as `node-1 slots=8`."""
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"The hostfile {file} cannot be read: {getattr(error, 'strerror', None) or error}.") from None
    found: dict[str, int] = {}
    for number, line in enumerate(lines, 1):
        text = line.partition("#")[0].strip()
        if not text:
            continue
        match = re.fullmatch(r"(\S+)\s+slots=(\d+)", text)
        if match is None or match[1].startswith("-"):
            raise UserError(f"Line {number} of the hostfile {file} is not of the form `machine slots=8`: {text}.")
        found[match[1]] = int(match[2])
    if not found:
        raise UserError(f"The hostfile {file} names no machine.")
    return found


def check_hosts(machines: Machines) -> None:
    """Whether every machine of the hostfile answers, and has as many slots as ranks are asked for."""
    if machines.hostfile is None:
        return
    hosts = read_hostfile(machines.hostfile)
    for name in ("ssh", "pdsh"):
        if shutil.which(name) is None:
            raise UserError(f"A launch on several machines needs the program `{name}`, which is not installed here.")
    for host, slots in hosts.items():
        if slots < machines.ranks:
            raise UserError(f"{machines.ranks} ranks are asked for on each machine; '{host}' has {slots} slots.")
        words = ["ssh", "-o", "BatchMode=yes", "-o", f"ConnectTimeout={REACH}", "--", host, "true"]
        try:
            code = subprocess.run(words, capture_output=True, timeout=2 * REACH, check=False).returncode
        except subprocess.TimeoutExpired:
            code = -1
        if code:
            raise UserError(f"The machine '{host}' of the hostfile {machines.hostfile} cannot be reached by ssh.")


def free_port(environment: Mapping[str, str] = os.environ) -> int:
    """The port that MASTER_PORT names, if it is free, or any that is."""
    wanted = environment.get("MASTER_PORT", "0")
    try:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("", int(wanted)))
            return int(probe.getsockname()[1])
    except (OSError, ValueError, OverflowError):
        raise UserError(
            f"The port MASTER_PORT={wanted} is taken, or is none; choose another, or leave it to us."
        ) from None


def command(machines: Machines, port: int, words: Sequence[str], module: str = MODULE) -> list[str]:
    """What is started: the launcher as a module of this very Python, and in each rank this very command."""
    start = [sys.executable, "-m", "deepspeed.launcher.runner", "--quiet", "--no_local_rank", "--module"]
    start += ["--num_accelerators", str(machines.ranks), "--master_port", str(port)]
    # Without a hostfile one that lies where DeepSpeed looks for it would be taken.
    start += ["--hostfile", str(machines.hostfile or Path(os.devnull).parent / "no-hostfile")]
    return [*start, module, *words]


def launch(machines: Machines, words: Sequence[str], *, cpu: bool, module: str = MODULE) -> int | None:
    """Starts the ranks and waits for them. Returns rank 0's exit code; None when it has left none."""
    environment = dict(os.environ)
    if cpu:
        environment.setdefault("DS_ACCELERATOR", "cpu")
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="pfl-launch-") as folder:
        note = Path(folder, "note")
        environment[NOTE] = str(note)
        # Whatever DeepSpeed might compile goes into a folder of its own: a lock that a killed build has left behind in
        # the common one would stop it for ever.
        environment["TORCH_EXTENSIONS_DIR"] = str(Path(folder, "extensions"))
        process = subprocess.Popen(command(machines, port, words, module), env=environment, start_new_session=True)
        with _forwarding(process):
            code = process.wait()
        told = note.read_text(encoding="utf-8") if note.is_file() else ""
        return int(told) if told else (None if code else 0)


def leave_note(code: int) -> None:
    """Rank 0 has said what there is to say, and ends with this code."""
    if file := os.environ.get(NOTE):
        Path(file).write_text(str(code), encoding="utf-8")


@contextmanager
def _forwarding(process: subprocess.Popen[bytes]) -> Iterator[None]:
    """Ctrl-C and SIGTERM reach the ranks, which are a group of their own; what does not end then is killed."""

    def forward(_number: int, _frame: FrameType | None) -> None:
        _signal_group(process, signal.SIGTERM)
        signal.setitimer(signal.ITIMER_REAL, GRACE)

    def kill(_number: int, _frame: FrameType | None) -> None:
        _signal_group(process, signal.SIGKILL)

    handlers = {signal.SIGINT: forward, signal.SIGTERM: forward, signal.SIGALRM: kill}
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in before.items():
            signal.signal(number, handler)
        _signal_group(process, signal.SIGKILL)  # nothing of a launch that has ended stays


def _signal_group(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, number)
