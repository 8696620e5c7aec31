"""The number that a worked solution ends in."""

from __future__ import annotations

import re
from decimal import Decimal, InvalidOperation

from pfl_platform.data import Sample

_NUMBER = re.compile(r"[-+]?\$?\s*(?:\d[\d,]*(?:\.\d+)?|\.\d+)")
_MARKS = (re.compile(r"####"), re.compile(r"\banswer\s*(?:is|:|=)", re.IGNORECASE))


def final_number(text: str) -> Decimal | None:
    """The first number after the last `####`, else after the last "answer is", else the last number in the text.

    >>> final_number("6 * 7 = 42\\n#### 1,042"), final_number("So the answer is $3.50 and not 4.")
    (Decimal('1042'), Decimal('3.50'))
    >>> final_number("It takes 2 + 1 = 3 bolts."), final_number("none")
    (Decimal('3'), None)
    """
    for mark in _MARKS:
        places = list(mark.finditer(text))
        if places and (found := _NUMBER.search(text, places[-1].end())):
            return _value(found.group())
    numbers = _NUMBER.findall(text)
    return _value(numbers[-1]) if numbers else None


def _value(text: str) -> Decimal | None:
    try:
        return Decimal(re.sub(r"[$,\s+]", "", text))
    except InvalidOperation:
        return None


def score(prediction: str, sample: Sample) -> float:
    """1 when the prediction ends in the number of an accepted answer.

    >>> from pfl_platform.data import Turn
    >>> sample = Sample("0", (Turn("2 + 1?", "2 + 1 = <<2+1=3>>3\\n#### 3"),))
    >>> score("It is 3.0", sample), score("#### 4", sample), score("", sample)
    (1.0, 0.0, 0.0)
    """
    found = final_number(prediction)
    return float(found is not None and found in {final_number(gold) for gold in sample.gold})
