"""The benchmark: whose pictures are learned, validated and tested on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from pfl_benchmarks.cifar100.files import COUNTS, CifarPicture, Pictures, find_folder, read_names, read_pictures
from pfl_benchmarks.cifar100.options import NAME, CifarOptions
from pfl_benchmarks.cifar100.partition import Places, dealt, shares
from pfl_benchmarks.roots import find_root
from pfl_platform.data import IMAGE_MARK, ClientData, FixedBenchmark, OnDemand, Sample, TaskData, Turn
from pfl_platform.errors import UserError
from pfl_platform.rng import numpy_rng

QUESTION = f"{IMAGE_MARK}\nWhat does the picture show? Your answer is:"
METRIC = "choice"
PUBLIC = "held_out"
DEFAULTS: dict[str, Any] = {
    "rounds": 100,
    "local_steps": 5,
    "training": {"batch_size": 10, "lr": 1e-3},
    "stream": {"protocol": "static"},
    "evaluation": {"every": 20, "max_new_tokens": 8},
}


@dataclass(frozen=True)
class Asked(OnDemand):
    """Some pictures of a file as samples. kind: of the labels; names: of the classes."""

    source: Pictures
    kind: str
    names: tuple[str, ...]
    places: Places
    part: str

    def __len__(self) -> int:
        return len(self.places)

    def at(self, place: int) -> Sample:
        number = int(self.places[place])
        label = int(self.source.records[number, list(COUNTS).index(self.kind)])
        picture = CifarPicture(self.source, number)
        return Sample(f"{self.part}/{number}", (Turn(QUESTION, self.names[label]),), (picture,), self.names)


def load(options: CifarOptions) -> FixedBenchmark:
    """Reads the files and deals the pictures; everything is checked here."""
    folder = find_folder(find_root(options.root, NAME, "CIFAR-100"))
    train, test = read_pictures(folder / "train.bin"), read_pictures(folder / "test.bin")
    kind, names = options.classes, read_names(folder, options.classes)
    law = shares(COUNTS["fine"], options.num_clients, options.alpha, numpy_rng(options.data_seed, NAME, "law"))
    free = unlike(train, test)
    order = numpy_rng(options.data_seed, NAME, "public").permutation(free)
    if options.public_size >= len(free):
        raise UserError(f"public_size is {options.public_size}, but {train.path} has {len(free)} pictures.")
    public, rest = np.sort(order[: options.public_size]), np.sort(order[options.public_size :])
    learned = dealt(train.labels("fine"), law, rest, numpy_rng(options.data_seed, NAME, "train"))
    tested = dealt(test.labels("fine"), law, np.arange(len(test)), numpy_rng(options.data_seed, NAME, "test"))
    clients = []
    for index in range(options.num_clients):
        client_id = str(index + 1)
        held = int(options.validation_share * len(learned[index]))
        parts = {
            "train": (train, cut(learned[index][held:], options.train_size)),
            "validation": (train, learned[index][:held]),
            "test": (test, cut(tested[index], options.test_size)),
        }
        for part in ("train", "test"):
            if not len(parts[part][1]):
                raise UserError(
                    f"Client '{client_id}' of {options.num_clients} gets no {part} pictures at alpha {options.alpha}; "
                    "choose a larger alpha, fewer clients or another data_seed."
                )
        learn, check, ask = (Asked(source, kind, names, places, source.path.stem) for source, places in parts.values())
        backbone = options.backbones[index % len(options.backbones)]
        clients.append(ClientData(client_id, backbone, (TaskData(NAME, "multi-choice", METRIC, learn, check, ask),)))
    sets = {PUBLIC: Asked(train, kind, names, public, train.path.stem)} if len(public) else {}
    content = digest_of(clients, sets.values())
    return FixedBenchmark(NAME, tuple(clients), content, defaults=DEFAULTS, public_sets=sets)


def unlike(train: Pictures, test: Pictures) -> Places:
    """Places of the train pictures that are no test pictures; of those with equal pixels, the first."""
    seen, places = set(test.digests), []
    for place, digest in enumerate(train.digests):
        if digest not in seen:
            seen.add(digest)
            places.append(place)
    return np.array(places, dtype=np.int64)


def cut(places: Places, most: int) -> Places:
    """The first `most` places; all when it is 0."""
    return places[:most] if most else places


def digest_of(clients: Iterable[ClientData], public: Iterable[Asked]) -> str:
    """SHA-256 over everything that a run can read: ids, backbones, options, and each picture's pixels and label."""
    digest = hashlib.sha256()

    def add(part: Any) -> None:
        labels = part.source.labels(part.kind)[part.places].tolist()
        keys = [part.source.digests[int(place)] for place in part.places]
        digest.update(json.dumps([part.names, part.places.tolist(), labels, keys]).encode())

    for client in clients:
        digest.update(json.dumps([client.client_id, client.backbone]).encode())
        for task in client.tasks:
            for part in (task.train, task.validation, task.test):
                add(part)
    for part in public:
        add(part)
    return digest.hexdigest()
