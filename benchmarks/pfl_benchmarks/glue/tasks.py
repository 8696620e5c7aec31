"""The eight tasks: where their columns stand, how they are asked, and what their labels are called."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from pfl_benchmarks.glue.tables import Line
from pfl_platform.data import IMAGE_MARK, Kind, Sample, Turn
from pfl_platform.errors import UserError


@dataclass(frozen=True)
class GlueTask:
    """One task.

    columns: names of the sentence columns, the label column last. positions: the same by place, for a file without a
    header. names: what stands before each sentence in the prompt. labels: label in the file -> its word, in the order
    of the classes; empty for scores of 0 to 5. test: the file that is tested on.
    """

    name: str
    columns: tuple[str, ...]
    names: tuple[str, ...]
    question: str
    labels: Mapping[str, str]
    metric: str = "choice"
    positions: tuple[int, ...] | None = None
    test: str = "dev.tsv"

    @property
    def kind(self) -> Kind:
        return "multi-choice" if self.labels else "open-ended"

    @property
    def options(self) -> tuple[str, ...]:
        """The label words, in the order of the classes."""
        return tuple(self.labels.values())

    def prompt(self, sentences: tuple[str, ...]) -> str:
        """The question about one or two sentences, with the label words to choose from.

        >>> print(TASKS["RTE"].prompt(("It rained all day.", "It was dry.")))
        Premise: It rained all day.
        Hypothesis: It was dry.
        Does the premise entail the hypothesis?
        Choice list:[entailment, not entailment]. Your answer is:
        """
        said = [f"{name}: {sentence}" for name, sentence in zip(self.names, sentences, strict=True)]
        ask = f"Choice list:[{', '.join(self.options)}]. Your answer is:" if self.labels else "Your answer is:"
        return "\n".join((*said, self.question, ask))

    def sample(self, line: Line, name: str) -> Sample:
        """A row as a sample. A label is learned and accepted as its word; a score is learned with one decimal, and the
        exact one is what predictions are compared with.

        >>> line = Line(2, ("A man smokes.", "A man skates.", "0.533"), "example")
        >>> sample = TASKS["STS-B"].sample(line, "s")
        >>> sample.turns[0].answer, sample.references, sample.options
        ('0.5', ('0.533',), ())
        """
        *sentences, label = line.fields
        for column, sentence in zip(self.columns, sentences, strict=False):
            if not sentence:
                raise UserError(f"{line.where}: the column '{column}' is empty.")
            if IMAGE_MARK in sentence:
                raise UserError(f"{line.where}: the text holds the mark {IMAGE_MARK}, which stands for a picture.")
        answer, accepted = self._answer(label, line.where)
        human = self.prompt(tuple(sentences))
        return Sample(name, (Turn(human, answer),), options=self.options, references=(accepted,))

    def _answer(self, label: str, where: str) -> tuple[str, str]:
        """What is learned, and what is accepted."""
        if self.labels:
            if label not in self.labels:
                raise UserError(f"{where}: '{label}' is no label of {self.name}; there are {', '.join(self.labels)}.")
            return self.labels[label], self.labels[label]
        try:
            score = float(label)
        except ValueError:
            score = math.nan
        if not 0.0 <= score <= 5.0:
            raise UserError(f"{where}: '{label}' is no score of {self.name}; scores are numbers from 0 to 5.")
        return f"{score:.1f}", repr(score)


_ENTAILS = {"entailment": "entailment", "not_entailment": "not entailment"}
_PAIR = ("Sentence 1", "Sentence 2")

TASKS: Mapping[str, GlueTask] = {
    task.name: task
    for task in (
        GlueTask(
            "CoLA",
            ("sentence", "label"),
            ("Sentence",),
            "Is this sentence grammatically acceptable?",
            {"0": "unacceptable", "1": "acceptable"},
            metric="matthews",
            positions=(3, 1),
        ),
        GlueTask(
            "MNLI",
            ("sentence1", "sentence2", "gold_label"),
            ("Premise", "Hypothesis"),
            "What follows from the premise for the hypothesis?",
            {name: name for name in ("entailment", "neutral", "contradiction")},
            test="dev_matched.tsv",
        ),
        GlueTask(
            "MRPC",
            ("#1 String", "#2 String", "Quality"),
            _PAIR,
            "Do these sentences say the same?",
            {"0": "different", "1": "equivalent"},
        ),
        GlueTask(
            "QNLI",
            ("question", "sentence", "label"),
            ("Question", "Sentence"),
            "Does the sentence hold the answer to the question?",
            _ENTAILS,
        ),
        GlueTask(
            "QQP",
            ("question1", "question2", "is_duplicate"),
            ("Question 1", "Question 2"),
            "Do these questions ask the same?",
            {"0": "different", "1": "duplicate"},
        ),
        GlueTask(
            "RTE",
            ("sentence1", "sentence2", "label"),
            ("Premise", "Hypothesis"),
            "Does the premise entail the hypothesis?",
            _ENTAILS,
        ),
        GlueTask(
            "SST-2",
            ("sentence", "label"),
            ("Review",),
            "Is this review negative or positive?",
            {"0": "negative", "1": "positive"},
        ),
        GlueTask(
            "STS-B",
            ("sentence1", "sentence2", "score"),
            _PAIR,
            "How alike are these sentences, as a number from 0.0 (nothing in common) to 5.0 (the same meaning)?",
            {},
            metric="pearson-spearman",
        ),
    )
}
"""The tasks by name, in the order in which the benchmark lists its clients."""
