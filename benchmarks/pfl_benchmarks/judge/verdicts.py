"""Recorded verdicts: a file with a JSON object per line, `{key, verdict, tokens_in, tokens_out}`.

The key names what was asked, and of whom; other fields are for readers. The file is continued line by line, so a run
that was stopped asks nothing twice.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

from pfl_benchmarks.judge.prompt import rating_in
from pfl_benchmarks.text.files import records, text_of
from pfl_platform.errors import UserError


@dataclass(frozen=True)
class Verdict:
    """What a judge said of one answer, and the tokens that it read and wrote."""

    text: str
    tokens_in: int = 0
    tokens_out: int = 0


def key_of(model: str, prompt: str) -> str:
    """Names what is asked of a judge."""
    return hashlib.sha256(json.dumps([model, prompt]).encode()).hexdigest()


class Verdicts:
    """The verdicts in a file, which may be continued."""

    def __init__(self, path: Path, *, may_begin: bool) -> None:
        self._path = path
        self._known: dict[str, Verdict] = {}
        if not path.exists() and may_begin:
            return
        lines = path.with_suffix(".jsonl")
        if lines != path:
            raise UserError(f"The file of verdicts {path} must end in .jsonl.")
        for where, record in records(path):
            verdict = text_of(record, "verdict", where)
            if rating_in(verdict) is None:
                raise UserError(f"{where}: the verdict holds no rating [[n]] from 1 to 10.")
            tokens = [record.get(name, 0) for name in ("tokens_in", "tokens_out")]
            if any(isinstance(count, bool) or not isinstance(count, int) or count < 0 for count in tokens):
                raise UserError(f"{where}: 'tokens_in' and 'tokens_out' are whole numbers.")
            self._known[text_of(record, "key", where)] = Verdict(verdict, *tokens)

    def get(self, key: str) -> Verdict | None:
        return self._known.get(key)

    def add(self, key: str, verdict: Verdict, item: str) -> None:
        """Keeps a verdict, on disk at once."""
        self._known[key] = verdict
        line = {
            "key": key,
            "item": item,
            "verdict": verdict.text,
            "tokens_in": verdict.tokens_in,
            "tokens_out": verdict.tokens_out,
        }
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line, ensure_ascii=False) + "\n")
        except OSError as error:
            raise UserError(f"The file of verdicts {self._path} cannot be written: {error.strerror}.") from None
