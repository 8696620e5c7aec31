"""HumanEval: does the function that a model completes pass its tests? (Chen et al., arXiv 2107.03374.)"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import final

from pfl_benchmarks.sandbox.running import Limits, require, run
from pfl_platform.data import Sample
from pfl_platform.errors import UserError
from pfl_platform.evaluation.surfaces import Metric

_FENCE = re.compile(r"```(?:python|py)?[ \t]*\n(.*?)(?:```|\Z)", re.DOTALL | re.IGNORECASE)
_STOP = re.compile(r"\n(?=def |class |if __name__|print\(|#|@|```|import |from )")


def complete(prompt: str, answer: str) -> str:
    """A program from a prompt that ends inside a function, and a model's answer to it.

    An answer in a code fence is taken out of it. One that defines a function of the prompt is a program by itself; the
    prompt goes before it for its imports. Any other goes on where the prompt ends, up to whatever begins at a line's
    start.

    >>> print(complete("def one():\\n", "return 1\\n\\nprint(one())"))
    def one():
        return 1
    >>> print(complete("def one():\\n", "Like so:\\n```python\\ndef one():\\n    return 1\\n```"))
    def one():
        pass
    def one():
        return 1
    <BLANKLINE>
    """
    fenced = _FENCE.search(answer)
    code = fenced.group(1) if fenced else answer
    names = re.findall(r"^def (\w+)\(", prompt, re.MULTILINE)
    if any(re.search(rf"^def {name}\(", code, re.MULTILINE) for name in names):
        return f"{prompt}    pass\n{code}"
    code = _STOP.split("\n" + code.lstrip("\n"), maxsplit=1)[0][1:] if code.strip() else ""
    first = next((line for line in code.split("\n") if line.strip()), "")
    if first and not first[0].isspace():  # tokenizers drop the white space that an answer begins with
        code = f"    {code}"
    return prompt + code.rstrip()


@final
class HumanEval(Metric):
    """1 for an answer whose program passes: the prompt (the question), the answer, and the tests (the first accepted
    answer of a sample). Generated code is run only where the user has allowed it, in a child that can do no harm."""

    name = "humaneval"

    def __init__(self, allowed: bool, limits: Limits) -> None:
        self._limits = limits
        if not allowed:
            raise UserError(
                "The metric 'humaneval' runs code that a model has written, in a sandbox; allow it with "
                "--set metrics.humaneval.options.run_code=true, or leave out the tasks that it scores."
            )
        require()

    @property
    def notes(self) -> Sequence[str]:
        limits = self._limits
        return (
            f"Scores of 'humaneval' are passes of one greedy answer each, with {limits.seconds} s and "
            f"{limits.memory_mb} MiB per program.",
        )

    def score(self, prediction: str, sample: Sample) -> float:
        program = f"{complete(sample.turns[0].human, prediction)}\n\n{sample.gold[0]}\n"
        return float(run(program, self._limits) == "passed")
