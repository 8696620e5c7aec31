"""What a finished run leaves, to compare two of them."""

from __future__ import annotations

from pathlib import Path


def left(out: Path) -> dict[str, bytes]:
    """Adapters and predictions, byte for byte."""
    files = [*sorted((out / "adapters").rglob("*.*")), out / "predictions.jsonl"]
    return {str(file.relative_to(out)): file.read_bytes() for file in files if file.is_file()}
