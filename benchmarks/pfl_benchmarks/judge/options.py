"""Options of the metric `rating`."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator


class RatingOptions(BaseModel):
    """Options of the metric `rating`."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    judge: Literal["stub", "replay", "http"] = Field(
        "stub",
        description="stub: no judge, words in common with the reference; replay: verdicts that were recorded; http: a "
        "server with OpenAI's chat interface",
    )
    verdicts: Path | None = Field(
        None, description="file of verdicts, a JSON object per line: read by `replay`, read and continued by `http`"
    )
    url: str = Field(
        "http://localhost:8000/v1", pattern=r"^https?://[^/\s]+", description="http: the server's address, up to /v1"
    )
    model: str = Field("gpt-4o-mini-2024-07-18", min_length=1, description="the judge's name")
    key_variable: str = Field("", description="http: environment variable that holds the server's key; empty: no key")
    template: Path | None = Field(
        None, description="text file with {question}, {answer} and {reference}; default: a prompt of this structure"
    )
    temperature: float = Field(0.2, ge=0)
    max_tokens: int = Field(1024, ge=1, description="tokens of a verdict, at most")
    timeout: float = Field(60.0, gt=0, description="http: seconds that an answer may take")
    retries: int = Field(3, ge=0, description="http: further attempts when the server fails or gives no rating")
    wait: float = Field(
        2.0, ge=0, description="http: seconds before the first of them; each further waits twice as long"
    )
    price_in: float = Field(0.0, ge=0, description="http: price of a million tokens that the judge reads")
    price_out: float = Field(0.0, ge=0, description="http: price of a million tokens that it writes")

    @model_validator(mode="after")
    def _has_its_file(self) -> RatingOptions:
        if self.judge != "stub" and self.verdicts is None:
            raise ValueError(f"'{self.judge}' needs the file 'verdicts'")
        return self
