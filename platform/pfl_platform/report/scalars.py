"""The observer that writes TensorBoard scalars."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from statistics import fmean
from typing import Any

from pfl_platform.evaluation.matrix import KINDS, mean, values_of
from pfl_platform.federation.observers import Observer, RunInfo
from pfl_platform.ledger.costs import total
from pfl_platform.report.event_file import EventFile
from pfl_platform.store.run_folder import RunFolder

logger = logging.getLogger(__name__)
_COSTS = ("up_payload", "up_wire", "down_payload", "down_wire", "seconds", "train_seconds", "flops")


class Scalars(Observer):
    """One point per tag and finished round; the axis is the round number, counted from 1.

    Points are made from the rounds on disk. A resumed run declares what an earlier process wrote void and writes all
    finished rounds again, so no point is there twice and none is missing, whenever that process died.
    """

    def __init__(self) -> None:
        self._folder: RunFolder | None = None
        self._writer: EventFile | None = None

    def run_started(self, info: RunInfo) -> None:
        if info.folder is None:
            return
        self._folder = RunFolder(info.folder)
        try:
            target = info.folder / "tensorboard"
            again = target.is_dir() and any(target.iterdir())
            self._writer = EventFile(target, purge_step=1 if again else None)
            for record in self._folder.rounds():
                self._write(record)
        except OSError as error:
            self._give_up(error)

    def round_done(self, round_index: int, summary: Mapping[str, Any]) -> None:
        if self._folder is None or self._writer is None:
            return
        try:
            record = self._folder.last_round()
            if record is not None:
                self._write(record)
        except OSError as error:
            self._give_up(error)

    def close(self) -> None:
        writer, self._writer = self._writer, None
        if writer is not None:
            writer.close()

    def _write(self, record: Mapping[str, Any]) -> None:
        if self._writer is not None:
            for tag, value in points(record):
                self._writer.add_scalar(tag, value, record["round_index"] + 1)
            self._writer.flush()

    def _give_up(self, error: OSError) -> None:
        """An observer changes nothing: a run does not end because its curves cannot be written."""
        logger.warning("No more TensorBoard scalars are written: %s", error)
        self.close()


def points(record: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """The (tag, value) pairs of one round's record.

    `loss/<client>` and `loss/mean` (of the client's phases); `self/...`, `others/...`, `unseen/...` likewise in rounds
    that were evaluated; `cost/<field>`, summed over clients: bytes, seconds, FLOPs.

    >>> entry = {"metrics": {"loss/local": 0.5}, "scores": {"a:t": 70.0}, "cost": {"up_payload": 12}}
    >>> found = dict(points({"round_index": 0, "clients": {"a": entry}}))
    >>> found["loss/a"], found["self/mean"], found["cost/up_payload"]
    (0.5, 70.0, 12)
    """
    clients: Mapping[str, Any] = record["clients"]
    curves: dict[str, dict[str, float | None]] = {kind: {} for kind in ("loss", *KINDS)}
    for client, entry in clients.items():
        losses = [value for name, value in entry["metrics"].items() if name.startswith("loss/")]
        curves["loss"][client] = fmean(losses) if losses else None
        for kind, value in values_of(client, entry["scores"]).items():
            curves[kind][client] = value
    for name, values in curves.items():
        for client, value in {**values, "mean": mean(values.values())}.items():
            if value is not None:
                yield f"{name}/{client}", value
    cost = total(entry["cost"] for entry in clients.values())
    for field in _COSTS:
        yield f"cost/{field}", cost[field]
