"""The core knows no paper: no name of a method, benchmark or family of models stands under `platform/`."""

from __future__ import annotations

import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

from pfl_platform.hookspecs import KINDS
from pfl_platform.plugins import available

PLAIN_ENGLISH = {
    "none",
    "folder",
    "choice",
    "exact",
    "modules",
    "instructions",
    "replied",
    "progress",
    "events",
    "tensorboard",
}
"""Names of in-tree plugins that are ordinary words (or, as observers, live in the core)."""

FAMILIES = {"llama", "llava", "qwen", "qwen2", "vit", "roberta", "t5", "opt", "gpt2", "bert", "mistral"}
PAPERS = {"drake", "hflb", "sni", "fedavg", "feddat", "ditto", "fedsim", "fedmkt", "takfl", "perada", "rouge"}
ADAPTERS = {"lora", "pqlora"}
PEFT_FORMAT = {"adapters/export.py", "adapters/folders.py"}
"""Files that write what plain peft reads; the names of its format (`LoraConfig`, `lora_A.weight`) are not ours."""


def words_of_the_papers() -> set[str]:
    """Every word of the name of an in-tree plugin, and some that are no plugin here yet."""
    names = {plugin.name for kind in KINDS for plugin in available(kind).values() if plugin.package == "pfl-platform"}
    words = {word for name in names for word in re.split(r"[^a-z0-9]+", name.lower())} | {
        name.lower() for name in names
    }
    measures = {"s", "m", "1b", "3b", "8b", "5b", "0", "1", "2", "3", "5", "tiny", "synth", "l", "f1", "token", "large"}
    measures |= {"task", "c", "partial"}  # of task arithmetic, Iso-C and partial model personalization
    return (words | FAMILIES | PAPERS) - measures - PLAIN_ENGLISH


def parts_of(text: str) -> set[str]:
    """Words as they stand between anything that is not a letter or digit, and the parts of camelCase."""
    spaced = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", " ", text)
    return set(re.split(r"[^a-z0-9]+", spaced.lower())) | set(re.split(r"[^a-z0-9]+", text.lower()))


def prose_and_code(file: Path) -> Iterator[tuple[int, str, bool]]:
    """Line, text and whether it is prose (a comment or a string that stands alone) of every token of a file."""
    before = tokenize.NEWLINE
    for token in tokenize.generate_tokens(io.StringIO(file.read_text(encoding="utf-8")).readline):
        alone = before in {tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.NL, tokenize.ENCODING}
        prose = token.type == tokenize.COMMENT or (token.type == tokenize.STRING and alone)
        if token.type in {tokenize.NAME, tokenize.STRING, tokenize.COMMENT} or token.type > tokenize.ENCODING - 8:
            yield token.start[0], token.string, prose
        before = token.type


def offences(file: Path) -> list[str]:
    banned = words_of_the_papers() - ({"lora"} if file.as_posix().endswith(tuple(PEFT_FORMAT)) else set())
    found = []
    for line, text, prose in prose_and_code(file):
        hits = parts_of(text) & (banned - ADAPTERS if prose else banned)
        found += [f"{file}:{line}: {hit}" for hit in sorted(hits)]
    return found


def test_no_name_of_a_paper_stands_in_the_core(checkout: Path) -> None:
    files = [file for file in (checkout / "platform").rglob("*") if file.suffix in {".py", ".yaml", ".json", ".html"}]
    assert len(files) > 20
    assert [hit for file in files if file.suffix == ".py" for hit in offences(file)] == []
    for file in files:
        if file.suffix != ".py":
            assert not parts_of(file.read_text(encoding="utf-8")) & words_of_the_papers(), file


def test_the_core_imports_no_other_root(checkout: Path) -> None:
    for file in (checkout / "platform").rglob("*.py"):
        assert not re.search(r"\bpfl_(plugins|benchmarks|model_zoo)\b", file.read_text(encoding="utf-8")), file


@pytest.mark.parametrize(
    ("text", "hits"),
    [
        ("if method == 'fedmosaic': pass", 1),
        ("class LlavaThing: pass", 1),
        ("def load_qwen2(): pass", 1),
        ("r = make_lora()", 1),
        ("# factors of a LoRA delta", 0),
        ('"""Like a LoRA delta."""', 0),
        ('"""As in FedMosaic."""', 1),
        ("explore = flora = 1", 0),
        ("folder = None", 0),
    ],
)
def test_the_check_itself(tmp_path: Path, text: str, hits: int) -> None:
    file = tmp_path / "example.py"
    file.write_text(text + "\n", encoding="utf-8")
    assert len(offences(file)) == hits
