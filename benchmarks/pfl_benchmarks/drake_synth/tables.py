"""The README's tables, made from what the code does."""

from __future__ import annotations

from collections.abc import Mapping

from pfl_benchmarks.drake_synth.families import FAMILIES
from pfl_benchmarks.drake_synth.lexicons import LANGUAGES
from pfl_benchmarks.drake_synth.render import marks
from pfl_benchmarks.drake_synth.tasks import TEMPLATES, UNSEEN, Plan, Spec, client_id, home_words
from pfl_benchmarks.drake_synth.words import MADE_UP, PLAIN

FORM_NAMES: Mapping[str, str] = {
    "list": "options",
    "yes": "yes or no",
    "open": "open",
}


def _row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def _head(*names: str) -> list[str]:
    return [_row(*names), _row(*("---" for _ in names))]


def _describe(spec: Spec, group: str) -> tuple[str, str, str, str]:
    """Pictures, form, kind of made-up words, and the first test question on one line."""
    sample = Plan(spec, group, (0, "table")).sample("test", 0)
    question = sample.turns[0].human.removeprefix(marks(len(sample.pictures))).split("\n")[0]
    return str(len(sample.pictures)), FORM_NAMES[spec.form], FAMILIES[spec.family].focus, question


def client_table() -> str:
    """All forty tasks."""
    rows = _head("client", "group", "backbone", "task", "pictures", "form", "made-up words", "a question")
    for index, template in enumerate(TEMPLATES):
        for spec in template.tasks:
            details = _describe(spec, template.group)
            rows.append(_row(client_id(index), template.group, template.backbone, f"`{spec.name}-{index}`", *details))
    return "\n".join(rows)


def unseen_table() -> str:
    """The seven unseen tasks."""
    rows = _head("set", "language", "task", "look", "pictures", "form", "made-up words", "a question")
    for label, group, spec in UNSEEN:
        rows.append(_row(label, group, f"`{spec.name}`", spec.style, *_describe(spec, group)))
    return "\n".join(rows)


def language_table() -> str:
    """Every made-up word and what it means in the three languages."""
    rows = _head("word", *LANGUAGES)
    for kind, words in MADE_UP.items():
        for word in words:
            meanings = []
            for language in LANGUAGES.values():
                concept = next(index for index, name in language.words[kind].items() if name == word)
                meanings.append(PLAIN.word(kind, concept))
            rows.append(_row(f"`{word}`", *meanings))
    return "\n".join(rows)


def home_table() -> str:
    """The colour words that each place in a group meets often."""
    rows = _head("place in its group", *LANGUAGES)
    for place in range(4):
        cells = []
        for language in LANGUAGES.values():
            home = home_words(language.named("colour"), place)
            cells.append(", ".join(language.word("colour", concept) for concept in sorted(home)))
        rows.append(_row(str(place), *cells))
    return "\n".join(rows)
