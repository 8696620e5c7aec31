"""A judge behind a server with OpenAI's chat interface, over plain HTTP."""

from __future__ import annotations

import json
import os
import time
from http.client import HTTPException
from typing import Any
from urllib import request
from urllib.error import HTTPError

from pfl_benchmarks.judge.options import RatingOptions
from pfl_benchmarks.judge.prompt import rating_in
from pfl_benchmarks.judge.verdicts import Verdict
from pfl_platform.errors import RunStopped, UserError

MOST_BYTES = 1 << 22
"""A longer answer of a server is none."""
_PASSING = {408, 409, 425, 429, 500, 502, 503, 504}
"""Answers of a server that may be others later."""


class Client:
    """Asks a server, with a limit of time and further attempts."""

    def __init__(self, options: RatingOptions) -> None:
        self._options = options
        self._headers = {"Content-Type": "application/json"}
        if options.key_variable:
            key = os.environ.get(options.key_variable)
            if not key:
                raise UserError(f"The environment variable {options.key_variable} holds no key for the judge.")
            self._headers["Authorization"] = f"Bearer {key}"

    def check(self) -> None:
        """Raises `UserError` when nobody answers, so that a run does not find out after its first round."""
        try:
            self._send("models", None)
        except HTTPError:
            return  # somebody is there, whatever they say to this
        except (OSError, HTTPException, ValueError) as error:
            raise UserError(f"The judge at {self._options.url} does not answer: {_reason(error)}.") from None

    def ask(self, prompt: str, item: str) -> Verdict:
        """The verdict, with a rating in it. Raises `RunStopped` when there is none after all attempts."""
        options = self._options
        body = {
            "model": options.model,
            "messages": [{"role": "user", "content": prompt}],
            "temperature": options.temperature,
            "max_tokens": options.max_tokens,
        }
        reason, tokens_in, tokens_out = "", 0, 0
        for attempt in range(options.retries + 1):
            if attempt:
                time.sleep(options.wait * 2 ** (attempt - 1))
            try:
                answer = self._send("chat/completions", body)
                text = answer["choices"][0]["message"]["content"]
                usage = answer.get("usage") or {}
                tokens_in += int(usage.get("prompt_tokens", 0))  # attempts without a rating cost something, too
                tokens_out += int(usage.get("completion_tokens", 0))
                if isinstance(text, str) and rating_in(text) is not None:
                    return Verdict(text, tokens_in, tokens_out)
                reason = "its verdict holds no rating [[n]] from 1 to 10"
            except HTTPError as error:
                reason = f"it answers {error.code} {error.reason}"
                if error.code not in _PASSING:
                    break
            except (KeyError, IndexError, TypeError, AttributeError):
                reason = "its answer is not in the form of a chat completion"
            except (OSError, HTTPException, ValueError) as error:
                reason = _reason(error)
        raise RunStopped(
            f"The judge at {options.url} gave no rating for the answer to '{item}': {reason}. What it has rated is "
            "kept; resume the run when it is there again."
        )

    def _send(self, path: str, body: dict[str, Any] | None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        url = f"{self._options.url.rstrip('/')}/{path}"
        asked = request.Request(url, data=data, headers=self._headers)
        with request.urlopen(asked, timeout=self._options.timeout) as answer:
            return json.loads(answer.read(MOST_BYTES))


def _reason(error: Exception) -> str:
    return str(getattr(error, "reason", None) or error or type(error).__name__).rstrip(".")
