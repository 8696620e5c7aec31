"""What all tests share. Nothing here is imported by name."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from xdist.scheduler import LoadFileScheduling

from pfl_platform import plugins

# Before torch is imported anywhere: results are compared bit for bit, and workers share the cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ["HF_HUB_OFFLINE"] = "1"  # no test may fetch anything

# The same examples every time, and no verdict by the clock of a busy machine.
settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.load_profile("repeatable")

# A package of its own, tested as an installed wheel; and what test files import, which holds no tests.
collect_ignore = ["third_party", "support"]

CHECKOUT = Path(__file__).resolve().parent.parent
for file in (CHECKOUT / "tests" / "support").glob("*.py"):
    pytest.register_assert_rewrite(file.stem)  # an assertion that fails in a helper shows its values, too
Command = Callable[..., "subprocess.CompletedProcess[str]"]


class Together(LoadFileScheduling):
    """Tests of a file run in one process, as they share what is expensive to make. Files that check every method in the
    same way are too long for that: there it is the tests of a method that stay together (`test_x[method-check]`)."""

    def _split_scope(self, nodeid: str) -> str:
        file = super()._split_scope(nodeid)
        if file.endswith("test_kill_and_resume.py"):
            return nodeid
        return nodeid.rpartition("-")[0] if file.endswith("test_contract.py") else file


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Together:
    return Together(config, log)


@pytest.fixture(scope="session")
def checkout() -> Path:
    """The root of the source tree."""
    return CHECKOUT


@pytest.fixture(scope="session")
def realdata() -> Path:
    """The folder of the real data slices: `PFL_DATA`, or `../shared/data` beside the checkout."""
    folder = Path(os.environ.get("PFL_DATA") or CHECKOUT.parent / "shared" / "data")
    folder = folder if folder.is_absolute() else CHECKOUT / folder
    if not folder.is_dir():
        pytest.skip(f"no real data: {folder} does not exist (name its folder with PFL_DATA)")
    return folder


@pytest.fixture
def command(tmp_path: Path) -> Command:
    """Runs `pfl-platform ...` as a process of its own, in an empty folder unless `cwd` says where."""

    def run(
        *words: str | Path, cwd: Path | None = None, env: Mapping[str, str] | None = None, timeout: float = 120
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", "import sys; from pfl_platform.cli import main; sys.exit(main())", *map(str, words)],
            cwd=cwd or tmp_path,
            env={**os.environ, **(env or {})},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )

    return run


@pytest.fixture
def one_thread() -> Iterator[None]:
    """One thread of torch's, whatever the machine has: sums of floats depend on how many there are."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def executed(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The tasks that were computed; those found in a cache are not among them."""
    from pfl_platform.engines.worker import Worker

    tasks: list[Any] = []
    before = Worker.execute

    def execute(self: Worker, task: Any, *rest: Any) -> Any:
        tasks.append(task)
        return before(self, task, *rest)

    monkeypatch.setattr(Worker, "execute", execute)
    return tasks


@pytest.fixture
def publish(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Path]]:
    """Puts a package on the path as if pip had installed it: metadata, entry points, files.

    `publish("name", {"adapters": {"x": "module"}}, {"module.py": "..."})` returns the folder, for the PYTHONPATH of
    a process."""
    site = tmp_path / "site"
    site.mkdir()

    def install(
        name: str, entry_points: Mapping[str, Mapping[str, str]], files: Mapping[str, str], version: str = "1.0"
    ) -> Path:
        metadata = site / f"{name.replace('-', '_')}-{version}.dist-info"
        metadata.mkdir()
        (metadata / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n", encoding="utf-8"
        )
        lines = []
        for group, entries in entry_points.items():
            lines += [f"[pfl_platform.{group}]", *(f"{key} = {value}" for key, value in entries.items())]
        (metadata / "entry_points.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
        for path, text in files.items():
            (site / path).parent.mkdir(parents=True, exist_ok=True)
            (site / path).write_text(text, encoding="utf-8")
        importlib.invalidate_caches()
        plugins._announced.cache_clear()
        return site

    monkeypatch.syspath_prepend(str(site))
    known = set(sys.modules)
    yield install
    for module in set(sys.modules) - known:
        if str(getattr(sys.modules[module], "__file__", None) or "").startswith(str(site)):
            del sys.modules[module]
    plugins._announced.cache_clear()
