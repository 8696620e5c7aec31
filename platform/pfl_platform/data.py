"""What a benchmark supplies: samples, tasks, clients.

Everything is lazy and read-only. A picture is known by a key and opened only when a backbone encodes it.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, overload, runtime_checkable

from pfl_platform.errors import UserError

if TYPE_CHECKING:
    from PIL.Image import Image

Kind = Literal["multi-choice", "open-ended"]
Protocols = Literal["dynamic", "static"]
DATA = "PFL_DATA"
"""Environment variable: the folder that holds data sets."""
IMAGE_MARK = "<image>"
"""Where a picture stands in a human turn; one mark per picture, in order."""


@runtime_checkable
class Picture(Protocol):
    """A picture that can be opened any number of times. `key` names its content: equal keys, equal pixels."""

    @property
    def key(self) -> str: ...

    def load(self) -> Image:
        """The picture as RGB."""
        ...


@dataclass(frozen=True, slots=True)
class FilePicture:
    """A picture in a file; a missing or broken file is a `UserError` that names it."""

    path: Path

    @property
    def key(self) -> str:
        return str(self.path)

    def load(self) -> Image:
        from PIL import Image as images
        from PIL import UnidentifiedImageError

        try:
            with images.open(self.path) as image:
                return image.convert("RGB")
        except FileNotFoundError:
            raise UserError(f"The picture {self.path} does not exist.") from None
        except UnidentifiedImageError:  # its own words hold an address in memory
            raise UserError(
                f"The picture {self.path} cannot be read: it is none, or its beginning is broken."
            ) from None
        except (OSError, SyntaxError, ValueError, images.DecompressionBombError) as error:
            raise UserError(f"The picture {self.path} cannot be read: {error}.") from None


@dataclass(frozen=True, slots=True)
class Turn:
    """One exchange: what the human says (with `<image>` marks) and the answer that is learned or scored."""

    human: str
    answer: str


@dataclass(frozen=True, slots=True)
class Sample:
    """One conversation with its pictures. Evaluation uses the first turn only.

    `references` are all accepted answers (the first turn's answer when empty);
    `options` are the choices of a multi-choice question, in the order shown.
    """

    id: str
    turns: tuple[Turn, ...]
    pictures: tuple[Picture, ...] = ()
    options: tuple[str, ...] = ()
    references: tuple[str, ...] = ()

    @property
    def gold(self) -> tuple[str, ...]:
        return self.references or (self.turns[0].answer,)

    @property
    def prompt_length(self) -> tuple[int, int]:
        """`length` of what evaluation asks: pictures, and characters of the first question."""
        return len(self.pictures), len(self.turns[0].human)

    @property
    def length(self) -> tuple[int, int]:
        """By which samples are put in order before a tokenizer has read them: pictures, and characters."""
        return len(self.pictures), sum(len(turn.human) + len(turn.answer) for turn in self.turns)


class OnDemand(Sequence[Sample]):
    """Samples that are made when they are asked for; so is a part that is cut out of them."""

    @abstractmethod
    def at(self, place: int) -> Sample:
        """Sample `place`, 0 .. len - 1: the same at every call."""

    @overload
    def __getitem__(self, index: int) -> Sample: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Sample]: ...
    def __getitem__(self, index: int | slice) -> Sample | Sequence[Sample]:
        if isinstance(index, int) and not -len(self) <= index < len(self):
            raise IndexError(f"there is no sample {index} among {len(self)}")
        places = range(len(self))[index]
        return _Part(self, places) if isinstance(places, range) else self.at(places)


@runtime_checkable
class Measured(Protocol):
    """Samples that are made when they are asked for, and know without that which of them are the longest."""

    def longest(self, most: int) -> Sequence[Sample]:
        """Of each number of pictures the `most` samples with the longest answers (in bytes, then by their question),
        and the `most` with the longest first question."""
        ...


class _Part(OnDemand):
    def __init__(self, whole: OnDemand, places: range) -> None:
        self._whole = whole
        self._places = places

    def __len__(self) -> int:
        return len(self._places)

    def at(self, place: int) -> Sample:
        return self._whole.at(self._places[place])


@dataclass(frozen=True)
class TaskData:
    """One task of a client. `train`, `validation` and `test` are disjoint; only `test` is ever reported and
    only `train` and `validation` may be read for tuning, features and statistics.

    `metric` names a plugin of kind `metric` (for example `choice`).
    """

    name: str
    kind: Kind
    metric: str
    train: Sequence[Sample]
    validation: Sequence[Sample]
    test: Sequence[Sample]
    group: str = ""


@dataclass(frozen=True)
class ClientData:
    """A client: its tasks in the order in which they arrive, and the backbone that the benchmark proposes for it."""

    client_id: str
    backbone: str
    tasks: tuple[TaskData, ...]

    @property
    def num_examples(self) -> int:
        return sum(len(task.train) for task in self.tasks)


class Benchmark(Protocol):
    """Data, partition, protocol and metrics of one benchmark. Built once per run by `pfl_make_benchmark`."""

    @property
    def name(self) -> str: ...

    @property
    def clients(self) -> tuple[ClientData, ...]: ...

    @property
    def unseen(self) -> tuple[TaskData, ...]:
        """Tasks that no client trains on; may be empty."""
        ...

    @property
    def defaults(self) -> Mapping[str, Any]:
        """Run settings that this benchmark proposes, as nested sections of `RunConfig` (rounds, local_steps,
        training, evaluation ...). A recipe, a method's own defaults for them, and the user override these."""
        ...

    def public(self, name: str | None, size: int, seed: int) -> Sequence[Sample]:
        """`size` samples disjoint from every client's data; `name` chooses among public sets, or is a path."""
        ...

    def digest(self) -> str:
        """Names the data's content; part of what resume and caches compare."""
        ...


@runtime_checkable
class Noting(Protocol):
    """A benchmark that has something to say of its data before a run begins, such as test data that stand in training
    data too."""

    @property
    def notes(self) -> Sequence[str]:
        """Sentences; none where there is nothing to say."""
        ...


@dataclass(frozen=True)
class FixedBenchmark:
    """A benchmark whose parts are already there; what most loaders return."""

    name: str
    clients: tuple[ClientData, ...]
    content: str
    unseen: tuple[TaskData, ...] = ()
    defaults: Mapping[str, Any] = field(default_factory=dict)
    public_sets: Mapping[str, Sequence[Sample]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    """See `Noting`."""

    def public(self, name: str | None, size: int, seed: int) -> Sequence[Sample]:
        """See `Benchmark.public`; draws without replacement at the address (seed, "public", name)."""
        from pfl_platform.errors import nearest
        from pfl_platform.rng import numpy_rng

        if not self.public_sets:
            raise UserError(
                f"The benchmark '{self.name}' has no public set; name a folder or another benchmark that has one with "
                "--public."
            )
        chosen = name if name is not None else next(iter(self.public_sets))
        if chosen not in self.public_sets:
            raise UserError(f"'{chosen}' is no public set of '{self.name}'." + nearest(chosen, self.public_sets))
        samples = self.public_sets[chosen]
        if len(samples) <= size:
            return samples
        picked = numpy_rng(seed, "public", chosen).choice(len(samples), size=size, replace=False)
        return [samples[int(index)] for index in sorted(picked)]

    def digest(self) -> str:
        return self.content
