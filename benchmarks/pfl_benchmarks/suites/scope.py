"""Fed-Scope's clients from their sources: GSM8K by random quarters, Dolly by category, code by language."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path

from pfl_benchmarks.folder.scenario import ScenarioClient, TaskSlot
from pfl_benchmarks.suites.exams import FILES, SCORED, read_exam, read_gsm8k
from pfl_benchmarks.suites.options import Exam, ScopeOptions
from pfl_benchmarks.text.files import records, text_of
from pfl_platform.data import Sample, Turn

DATASET = "FS_LLM_Instruct"
CATEGORIES = {
    "10": "classification", "11": "closed_qa", "12": "general_qa", "13": "open_qa",
    "14": "information_extraction", "15": "creative_writing", "16": "brainstorming", "17": "summarization",
}  # fmt: skip
LANGUAGES = {
    "20": ("java",), "21": ("c", "php"), "22": ("c#",), "23": ("c++",),
    "24": ("python",), "25": ("go",), "26": ("pascal",), "27": ("scala",),
}  # fmt: skip
QUARTERS = ("0", "1", "2", "3")
HELD_OUT, MOST_HELD_OUT = 0.1, 100
"""Share of a subset that is tested on where no test of its domain is, and at most so many."""
DOLLY, ROSETTA = "dolly/databricks-dolly-15k.jsonl", "rosetta/rosetta_alpaca.json"
CODE_ALPACA = "code_alpaca_*.json"


def exam_of(subset: str) -> Exam:
    """The test of a subset's domain.

    >>> [exam_of(subset) for subset in ("3", "17", "20")]
    ['gsm8k', 'mmlu', 'humaneval']
    """
    return "gsm8k" if subset in QUARTERS else "mmlu" if subset in CATEGORIES else "humaneval"


def examined(clients: Sequence[ScenarioClient], options: ScopeOptions) -> tuple[ScenarioClient, ...]:
    """The clients, with each task scored as the test of its domain is, where that is asked for."""

    def scored(slot: TaskSlot) -> TaskSlot:
        if slot.dataset != DATASET or exam_of(slot.subset) not in options.evaluate:
            return slot
        kind, metric = SCORED[exam_of(slot.subset)]
        return replace(slot, kind=kind, metric=metric)

    return tuple(replace(client, tasks=tuple(map(scored, client.tasks))) for client in clients)


def unexamined(clients: Sequence[ScenarioClient], options: ScopeOptions) -> tuple[str, ...]:
    """A sentence on each test that does not take the place of held-out samples."""
    found: dict[Exam, None] = {}
    for slot in (slot for client in clients for slot in client.tasks if slot.dataset == DATASET):
        if exam_of(slot.subset) not in options.evaluate:
            found[exam_of(slot.subset)] = None
    return tuple(
        f"Tasks of the domain of {exam} are scored on held-out samples, not on {exam}; the benchmark option 'evaluate' "
        "names the tests."
        for exam in found
    )


class ScopeFiles:
    """The subsets of `FS_LLM_Instruct` from their sources, where they do not lie in the folder form, and the tests.

    A test is cut into as many parts as a client has tasks of its domain, so that the mean over them is the whole test.
    """

    def __init__(self, root: Path, clients: Sequence[ScenarioClient], options: ScopeOptions) -> None:
        self._root = root
        self._options = options
        self._place: dict[str, tuple[int, int]] = {}
        for client in clients:
            own = [slot.subset for slot in client.tasks if slot.dataset == DATASET]
            for subset in own:
                domain = [other for other in own if exam_of(other) == exam_of(subset)]
                self._place[subset] = (domain.index(subset), len(domain))
        self._read: dict[str, list[Sample]] = {}

    def has(self, slot: TaskSlot, split: str) -> bool:
        if slot.dataset != DATASET:
            return False
        exam = exam_of(slot.subset)
        if split == "test" and exam in self._options.evaluate:
            return (self._root / FILES[exam]).exists()
        if slot.file(self._root, split).is_file():
            return False
        if exam == "gsm8k":
            return (self._root / "gsm8k" / "train.jsonl").is_file()
        if exam == "mmlu":
            return (self._root / DOLLY).is_file()
        return (self._root / ROSETTA).is_file() if self._options.code == "rosetta" else bool(self._code_alpaca)

    def __call__(self, slot: TaskSlot, split: str) -> list[Sample] | None:
        if not self.has(slot, split):
            return None
        exam = exam_of(slot.subset)
        if split == "test" and exam in self._options.evaluate:
            place, parts = self._place[slot.subset]
            whole = self._whole_exam(exam)
            return [replace(sample, id=f"{slot.name}/{sample.id}") for sample in whole[place::parts]]
        samples = self._subset(slot.subset)
        held = min(max(round(HELD_OUT * len(samples)), 1), MOST_HELD_OUT)
        part = samples[held:] if split == "train" else samples[:held]
        return [replace(sample, id=f"{slot.name}/{split}/{sample.id}") for sample in part]

    def _whole_exam(self, exam: Exam) -> list[Sample]:
        if exam not in self._read:
            self._read[exam] = read_exam(exam, self._root, self._options.shots)
        return self._read[exam]

    def _subset(self, subset: str) -> list[Sample]:
        """A subset's samples in an order of their own."""
        if subset in QUARTERS:
            return self._shuffled(read_gsm8k(self._root, "train"), "gsm8k")[int(subset) :: len(QUARTERS)]
        if subset in CATEGORIES:
            chosen = [sample for kind, sample in self._dolly if kind == CATEGORIES[subset]]
            return self._shuffled(chosen, subset)
        if self._options.code == "rosetta":
            chosen = [sample for language, sample in self._rosetta if language in LANGUAGES[subset]]
            return self._shuffled(chosen, subset)
        whole = [sample for file in self._code_alpaca for _, sample in _labelled(file, "input", "input", "output")]
        return self._shuffled(whole, "code")[list(LANGUAGES).index(subset) :: len(LANGUAGES)]

    def _shuffled(self, samples: Sequence[Sample], part: str) -> list[Sample]:
        from pfl_platform.rng import numpy_rng

        order = numpy_rng(self._options.data_seed, "fedscope", part).permutation(len(samples))
        return [samples[int(index)] for index in order]

    @cached_property
    def _dolly(self) -> list[tuple[str, Sample]]:
        return _labelled(self._root / DOLLY, "category", "context", "response")

    @cached_property
    def _rosetta(self) -> list[tuple[str, Sample]]:
        return _labelled(self._root / ROSETTA, "input", "input", "output")

    @cached_property
    def _code_alpaca(self) -> list[Path]:
        return sorted((self._root / "code_alpaca").glob(CODE_ALPACA))


def _labelled(file: Path, label: str, more: str, answer: str) -> list[tuple[str, Sample]]:
    """(label in small letters, sample) of a file's instructions; some have no answer, and are left out."""
    found = []
    for index, (where, record) in enumerate(records(file)):
        said = text_of(record, answer, where, empty=True)
        if not said:
            continue
        asked, context = text_of(record, "instruction", where), text_of(record, more, where, empty=True)
        human = f"{asked}\n\n{context}" if context else asked
        kind = text_of(record, label, where, empty=True).lower()
        found.append((kind, Sample(f"{file.stem}/{index}", (Turn(human, said),))))
    return found
