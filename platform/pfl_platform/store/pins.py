"""What a run was begun with, so that it is not finished with something else without a word.

Versions, thread count, data and backbones decide the last bits of every number. They are written when a run is created
and compared when it is resumed. A public set that was named counts among the data. Nothing here imports torch.
"""

from __future__ import annotations

import platform
from collections.abc import Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any

PACKAGES = ("pfl-platform", "torch", "transformers", "peft", "tokenizers", "safetensors", "numpy", "pillow")


def software() -> dict[str, str]:
    """Versions of Python and of the packages that decide numbers; "absent" for one that is not installed.

    >>> {'pfl-platform', 'python', 'torch'} <= set(software())
    True
    """
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "absent"
    return found


def pins_of(
    *,
    threads: int,
    benchmark: str,
    backbones: Mapping[str, str],
    packages: Mapping[str, str] | None = None,
    **more: Any,
) -> dict[str, Any]:
    """All pins of a run.

    threads: torch threads in use. benchmark: its digest. backbones: name -> digest of its weights. packages: versions
    of the installed packages whose plugins take part, by package. more: further numeric options by name (for example
    `dtype`, `device`).
    """
    return {
        "versions": {**dict(sorted((packages or {}).items())), **software()},
        "threads": threads,
        "benchmark": benchmark,
        "backbones": dict(sorted(backbones.items())),
        **more,
    }


def differences(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """One sentence for each pin that is not what it was.

    >>> differences({"threads": 2, "benchmark": "ab"}, {"threads": 4, "benchmark": "ab"})
    ['The run began with 2 torch threads; here there are 4.']
    """
    return [_sentence(*difference) for difference in differing(then, now)]


def differing(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[tuple[tuple[str, ...], Any, Any]]:
    """Path, former and present value of each pin that is not what it was.

    >>> differing({"versions": {"a": "1"}}, {"versions": {"a": "2"}})
    [(('versions', 'a'), '1', '2')]
    """
    before, after = dict(_leaves(then)), dict(_leaves(now))
    return [
        (path, before.get(path, "nothing"), after.get(path, "nothing"))
        for path in sorted({*before, *after})
        if before.get(path) != after.get(path)
    ]


def _leaves(tree: Mapping[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    for name, value in tree.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, (*path, name))
        else:
            yield (*path, name), list(value) if isinstance(value, tuple) else value


def _sentence(path: tuple[str, ...], before: Any, after: Any) -> str:
    match path:
        case ("versions", package):
            return f"The run began with {package} {before}; here it is {after}."
        case ("threads",):
            return f"The run began with {before} torch threads; here there are {after}."
        case ("benchmark",):
            return "The benchmark's data are not those that the run began with."
        case ("public",) if "nothing" not in (before, after):
            return "The public set is not the one that the run began with."
        case ("backbones", name) if "nothing" not in (before, after):
            return f"The weights of the backbone '{name}' are not those that the run began with."
        case _:
            return f"The run began with {before} for '{'.'.join(path)}'; here it is {after}."
