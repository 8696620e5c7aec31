"""A list of the system calls that confined code may make, as a filter of the kernel (seccomp, BPF).

Whatever is not on the list fails with "operation not permitted": sockets, new processes and threads, other programs,
signals to others, any change to files. Opening a file is allowed for reading only.

Run by `child.py` in a bare interpreter: standard library only, and as little of it as can be.
"""

import ctypes
import struct
import sys

ALLOWED = {
    # name: (x86-64, 64-bit ARM; None where it does not exist)
    "read": (0, 63), "write": (1, 64), "close": (3, 57), "stat": (4, None), "fstat": (5, 80), "lstat": (6, None),
    "poll": (7, None), "lseek": (8, 62), "mmap": (9, 222), "mprotect": (10, 226), "munmap": (11, 215),
    "brk": (12, 214), "rt_sigaction": (13, 134), "rt_sigprocmask": (14, 135), "rt_sigreturn": (15, 139),
    "pread64": (17, 67), "readv": (19, 65), "writev": (20, 66), "access": (21, None), "select": (23, None),
    "sched_yield": (24, 124), "mremap": (25, 216), "madvise": (28, 233), "nanosleep": (35, 101), "getpid": (39, 172),
    "exit": (60, 93), "uname": (63, 160), "getcwd": (79, 17), "readlink": (89, None), "gettimeofday": (96, 169),
    "getrusage": (98, 165), "sysinfo": (99, 179), "times": (100, 153), "getuid": (102, 174), "getgid": (104, 176),
    "geteuid": (107, 175), "getegid": (108, 177), "getppid": (110, 173), "sigaltstack": (131, 132),
    "gettid": (186, 178), "time": (201, None), "futex": (202, 98), "sched_getaffinity": (204, 123),
    "getdents64": (217, 61), "restart_syscall": (219, 128), "clock_gettime": (228, 113), "clock_getres": (229, 114),
    "clock_nanosleep": (230, 115), "exit_group": (231, 94), "newfstatat": (262, 79), "readlinkat": (267, 78),
    "faccessat": (269, 48), "pselect6": (270, 72), "ppoll": (271, 73), "getrandom": (318, 278), "statx": (332, 291),
    "faccessat2": (439, 439),
}  # fmt: skip
OPENS = {"x86_64": {2: 1, 257: 2}, "aarch64": {56: 2}}
"""Calls that open a file: number -> which argument holds the flags. (`open` and `openat`.)"""
MACHINES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
"""Machine -> what the kernel calls it in a filter's data."""

_WRITES = 0o1 | 0o2 | 0o100 | 0o1000 | 0o2000 | 0o20000000
"""Flags for writing only, reading and writing, creating, truncating, appending, a file without a name."""
_X32 = 0x40000000
_LOAD, _EQUAL, _AT_LEAST, _AND, _RETURN = 0x20, 0x15, 0x35, 0x54, 0x06
_ALLOW, _REFUSE, _KILL = 0x7FFF0000, 0x00050001, 0x80000000
_NO_NEW_PRIVILEGES, _SET_SECCOMP, _FILTER = 38, 22, 2


def program(machine: str) -> list[tuple[int, int, int, int]]:
    """The filter's instructions (code, jump if true, jump if false, operand)."""
    numbers = [pair[machine == "aarch64"] for pair in ALLOWED.values()]
    lines = [(_LOAD, 0, 0, 4), (_EQUAL, 1, 0, MACHINES[machine]), (_RETURN, 0, 0, _KILL), (_LOAD, 0, 0, 0)]
    if machine == "x86_64":
        lines += [(_AT_LEAST, 0, 1, _X32), (_RETURN, 0, 0, _KILL)]
    for number in sorted(number for number in numbers if number is not None):
        lines += [(_EQUAL, 0, 1, number), (_RETURN, 0, 0, _ALLOW)]
    for number, argument in OPENS[machine].items():
        lines += [
            (_EQUAL, 0, 5, number),
            (_LOAD, 0, 0, 16 + 8 * argument),
            (_AND, 0, 0, _WRITES),
            (_EQUAL, 0, 1, 0),
            (_RETURN, 0, 0, _ALLOW),
            (_RETURN, 0, 0, _REFUSE),
        ]
    return [*lines, (_RETURN, 0, 0, _REFUSE)]


def machine() -> str:
    """This machine's name, if there is a filter for it; else an `OSError`."""
    import os

    name = os.uname().machine
    if sys.platform != "linux" or name not in MACHINES or struct.calcsize("P") != 8 or sys.byteorder != "little":
        raise OSError(f"no filter of system calls for {sys.platform} on {name}")
    return name


def confine() -> None:
    """Puts the filter on this process, for good. An `OSError` where the kernel has none."""
    lines = program(machine())
    packed = b"".join(struct.pack("HBBI", *line) for line in lines)
    body = ctypes.create_string_buffer(packed, len(packed))
    head = ctypes.create_string_buffer(struct.pack("HxxxxxxP", len(lines), ctypes.addressof(body)))
    libc = ctypes.CDLL(None, use_errno=True)
    zero = ctypes.c_ulong(0)
    for option, first, second in (
        (_NO_NEW_PRIVILEGES, ctypes.c_ulong(1), zero),
        (_SET_SECCOMP, ctypes.c_ulong(_FILTER), ctypes.c_void_p(ctypes.addressof(head))),
    ):
        if libc.prctl(option, first, second, zero, zero):
            raise OSError(ctypes.get_errno(), "the kernel takes no filter of system calls")
