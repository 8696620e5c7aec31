"""The metric `rating`: a judge's mean rating of 1 to 10, shown times ten."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import final

from pfl_benchmarks.judge.client import Client
from pfl_benchmarks.judge.options import RatingOptions
from pfl_benchmarks.judge.prompt import HIGHEST, LOWEST, prompt, rating_in, read_template
from pfl_benchmarks.judge.verdicts import Verdict, Verdicts, key_of
from pfl_benchmarks.metrics.rouge_l import rouge_l
from pfl_platform.data import Sample
from pfl_platform.errors import RunStopped
from pfl_platform.evaluation.surfaces import Metric

Judge = Callable[[str, str, str, str], float]
"""(prompt, item, answer, reference) -> rating, 1 to 10."""


@final
class Rating(Metric):
    """A prediction's rating over ten. A cell's score is ten times the mean rating."""

    name = "rating"

    def __init__(self, options: RatingOptions) -> None:
        self._options = options
        self._template = read_template(options.template)
        self._used: dict[str, Verdict] = {}
        self._asked = 0
        self._verdicts: Verdicts | None = None
        self._client: Client | None = None
        if options.verdicts is not None:
            self._verdicts = Verdicts(options.verdicts, may_begin=options.judge == "http")
        if options.judge == "http":
            self._client = Client(options)
            self._client.check()

    def score(self, prediction: str, sample: Sample) -> float:
        return self.rate(prediction, sample) / HIGHEST

    def rate(self, prediction: str, sample: Sample) -> float:
        """The rating of one answer, from 1 to 10."""
        reference = sample.gold[0]
        if self._verdicts is None:
            return LOWEST + (HIGHEST - LOWEST) * rouge_l(prediction, reference, any_language=True)
        asked = prompt(self._template, sample.turns[0].human, prediction, reference)
        key = key_of(self._options.model, asked)
        verdict = self._verdicts.get(key)
        if verdict is None:
            if self._client is None:
                raise RunStopped(
                    f"{self._options.verdicts} holds no verdict of '{self._options.model}' on this answer to "
                    f"'{sample.id}'; ask a judge with judge: http, which adds it."
                )
            verdict = self._client.ask(asked, sample.id)
            self._verdicts.add(key, verdict, sample.id)
            self._asked += 1
        self._used[key] = verdict
        rating = rating_in(verdict.text)
        assert rating is not None  # verdicts without one are refused where they come from
        return rating

    @property
    def notes(self) -> Sequence[str]:
        what = "Scores of 'rating' are ten times the mean rating of 1 to 10"
        if self._verdicts is None:
            return (f"{what}, from the offline stub: words in common with the reference. No judge has read an answer.",)
        options = self._options
        if self._client is None:
            return (f"{what} by '{options.model}', from verdicts that were recorded before.",)
        read = sum(verdict.tokens_in for verdict in self._used.values())
        written = sum(verdict.tokens_out for verdict in self._used.values())
        price = (read * options.price_in + written * options.price_out) / 1e6
        cost = f" for {price:.4f}" if options.price_in or options.price_out else ""
        return (
            f"{what} by '{options.model}' at {options.url}: {len(self._used)} verdicts of {read:,} tokens read and "
            f"{written:,} written{cost}; {self._asked} of them were asked for in this process, the others recorded.",
        )
