"""Commands in the documents are commands: each resolves as it is written."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pfl_platform.settings import parse

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    file
    for pattern in ("*.md", "*/README.md", "*/*/*/README.md", "benchmarks/RESULTS.md")
    for file in ROOT.glob(pattern)
    if not {".venv", "build", "third_party"} & set(file.relative_to(ROOT).parts)
)
PLACEHOLDER = re.compile(r"\b[A-Z]{2,}\b(?![-_.\w])")
"""METHOD, PATH, RUN ...: what a reader fills in."""
EXAMPLES = {"pics", "median"}
"""What a command before it, or a package that the page shows, would have made."""


def commands(page: Path) -> Iterator[list[str]]:
    """Words after `pfl-platform` of every command in a block of code, without its comment."""
    for block in re.findall(r"^```(?:\w+)?\n(.*?)^```", page.read_text(encoding="utf-8"), re.S | re.M):
        for line in block.replace("\\\n", " ").splitlines():
            if line.startswith("pfl-platform ") and not PLACEHOLDER.search(line.split("#")[0]):
                yield shlex.split(line, comments=True)[1:]


CASES = {f"{page.relative_to(ROOT)}: {shlex.join(words)}": words for page in PAGES for words in commands(page)}


def test_there_are_many() -> None:
    assert len(PAGES) > 20
    assert len(CASES) > 10


@pytest.mark.parametrize("case", [name for name, words in CASES.items() if words[0] == "run"])
def test_runs_resolve(case: str, pfl: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PFL_DATA", raising=False)
    said = pfl(*CASES[case], "--print-config")
    if made := EXAMPLES & set(CASES[case]):
        assert f"'{made.pop()}'" in said.err  # and nothing else is wrong with it
    elif said.code != 0:
        assert "set PFL_DATA" in said.err
    else:
        assert parse(said.out, case)


@pytest.mark.parametrize("case", [name for name, words in CASES.items() if words[0] in ("list", "costs")])
def test_lists_are_printed(case: str, pfl: Any) -> None:
    words = [word for word in CASES[case] if word != "|"]
    kinds = words[1:] if words[0] == "list" else []
    for kind in kinds:
        assert pfl("list", kind).code == 0
