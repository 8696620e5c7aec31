"""Makes a federation of real pictures in the DRAKE on-disk form, from Fashion-MNIST, MNIST, Omniglot and CIFAR.

    python tools/make_picture_federation.py --data ../shared/data/images --cifar ../shared/data/cifar100 --out pictures
    pfl-platform run --plugin fedmosaic --benchmark pictures

Eight clients, two per source, with four tasks each. The two clients of a source are related: they share concepts, and
each meets half of the kinds (its home kinds) more often in training. Clients of different sources have little in
common. No picture is shared between clients, between train and test, or with the public set. The same seed gives the
same bytes.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle, islice, zip_longest
from pathlib import Path
from typing import Any

import yaml
from PIL import Image

from pfl_platform.errors import UserError
from pfl_platform.rng import numpy_rng
from picture_federation.questions import (
    Deck,
    Maker,
    count_of,
    is_animal,
    larger_digit,
    lettered_kind,
    listed_kind,
    matching_character,
    named_kind,
    odd_one,
    same_character,
    same_kind,
    sum_of_digits,
    which_image,
)
from picture_federation.sources import Item, Source, cifar, fashion_mnist, mnist, omniglot

LICENCES = (
    "Fashion-MNIST: Zalando SE, MIT licence.",
    "MNIST: Y. LeCun and C. Cortes, CC BY-SA 3.0.",
    "Omniglot: B. Lake, MIT licence; reduced to 64 x 64 pixels.",
    "CIFAR: A. Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009; no licence text, for research "
    "with that citation.",
)
DEFAULTS: Mapping[str, Any] = {
    "rounds": 20,
    "local_steps": 50,
    "training": {"batch_size": 8},
    "evaluation": {"every": 5, "max_new_tokens": 8},
}
FEWEST = 8
"""Pictures of a kind that every client has at least, so that questions about two of a kind can be asked."""


@dataclass(frozen=True)
class Client:
    """One client: its source's data set, its place among the two clients of that source, its tasks."""

    client_id: str
    dataset: str
    place: int
    backbone: str
    tasks: tuple[Maker, ...]


LLAMA_S, LLAMA_M, QWEN_S, QWEN_M = (f"tiny-llava-{name}" for name in ("llama-s", "llama-m", "qwen-s", "qwen-m"))
CLIENTS = (
    Client("garments-a", "FashionMNIST", 0, LLAMA_S, (
        lettered_kind("garment"), same_kind("kind of garment"), which_image("garment"), count_of("garment"),
    )),
    Client("garments-b", "FashionMNIST", 1, QWEN_M, (
        listed_kind("garment"), same_kind("kind of garment"), odd_one("kind of garment"), named_kind("garment"),
    )),
    Client("digits-a", "MNIST", 0, QWEN_S, (
        named_kind("digit"), larger_digit, sum_of_digits, which_image("digit"),
    )),
    Client("digits-b", "MNIST", 1, LLAMA_M, (
        lettered_kind("digit"), larger_digit, same_kind("digit"), count_of("digit"),
    )),
    Client("letters-a", "Omniglot", 0, LLAMA_M, (
        same_character, matching_character, lettered_kind("alphabet"), same_kind("alphabet"),
    )),
    Client("letters-b", "Omniglot", 1, QWEN_S, (
        same_character, odd_one("alphabet"), listed_kind("alphabet"), matching_character,
    )),
    Client("things-a", "CIFAR", 0, QWEN_M, (
        lettered_kind("kind of thing"), same_kind("kind of thing"), which_image("kind"), is_animal,
    )),
    Client("things-b", "CIFAR", 1, LLAMA_S, (
        listed_kind("kind of thing"), same_kind("kind of thing"), odd_one("kind of thing"), named_kind("kind of thing"),
    )),
)  # fmt: skip


@dataclass(frozen=True)
class Sizes:
    """Records per task and in the public set; share of a client's training questions that ask for its home kinds."""

    train: int
    test: int
    public: int
    skew: float


def deal(items: Sequence[Item], counts: Sequence[int], *address: str | int) -> list[list[Item]]:
    """Different pictures for several owners, about `counts[owner]` of each kind. Repeated pixels are left out.

    Within a kind, owners get blocks of up to four pictures of the same detail, from as many details as there are.
    """
    details: dict[str, dict[str, list[Item]]] = {}
    seen: set[bytes] = set()
    for item in items:
        if (pixels := item.pixels.tobytes()) not in seen:
            seen.add(pixels)
            details.setdefault(item.kind, {}).setdefault(item.detail, []).append(item)
    owners: list[list[Item]] = [[] for _ in counts]
    for kind in sorted(details):
        cut = {
            detail: [same[start : start + 4] for start in range(0, len(same), 4)]
            for detail, same in details[kind].items()
        }
        order = [list(cut)[int(index)] for index in numpy_rng(*address, kind).permutation(len(cut))]
        rounds = zip_longest(*(cut[detail] for detail in order), fillvalue=())
        blocks = [block for one_of_each in rounds for block in one_of_each if len(block) > 1]
        for owner, count in enumerate(counts):
            owners[owner] += [item for block in blocks[owner :: len(counts)] for item in block][:count]
    return owners


def store(items: Sequence[Item], folder: Path, prefix: str) -> dict[str, dict[str, str]]:
    """Writes pictures as PNG below `folder`; kind -> path below the federation -> detail."""
    (folder / prefix).mkdir(parents=True, exist_ok=True)
    kinds: dict[str, dict[str, str]] = {}
    for item in items:
        of_kind = kinds.setdefault(item.kind, {})
        path = f"{prefix}/{item.kind.replace(' ', '_')}-{len(of_kind):03d}.png"
        Image.fromarray(item.pixels).save(folder / path, compress_level=6)
        of_kind[path] = item.detail
    return kinds


def records(deck: Deck, makers: Sequence[Maker], targets: Sequence[str], prefix: str) -> list[dict[str, Any]]:
    """One record per target, the makers in turn; no question is asked twice of the same pictures."""
    made: list[dict[str, Any]] = []
    seen: set[tuple[str, ...]] = set()
    for turn, kind in enumerate(targets):
        maker = makers[turn % len(makers)]
        for _ in range(100):
            question = maker(deck, kind, turn // len(makers))
            if (key := (question.text, *question.pictures)) not in seen:
                break
        else:
            raise UserError(
                f"There are too few pictures of '{kind}' for {len(targets)} different questions; ask for fewer."
            )
        seen.add(key)
        human = "<image>\n" * len(question.pictures) + question.text
        turns = [{"from": "human", "value": human}, {"from": "gpt", "value": question.answer}]
        made.append({"id": f"{prefix}-{turn}", "image": list(question.pictures), "conversations": turns})
    return made


def targets(deck: Deck, number: int, home: Sequence[str] = (), skew: float = 0.0) -> list[str]:
    """The kinds that questions ask for: the home kinds in their share, the others for the rest, evenly, shuffled."""
    away = [kind for kind in deck.kinds if kind not in home]
    at_home = round(skew * number) if home else 0
    return deck.shuffled([*islice(cycle(home or away), at_home), *islice(cycle(away), number - at_home)])


def write_json(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def build(sources: Mapping[str, Source], folder: Path, seed: int, sizes: Sizes) -> None:
    """Writes the whole federation into `folder`."""
    scenario, public = [], []
    for dataset, source in sources.items():
        clients = [client for client in CLIENTS if client.dataset == dataset]
        slots: dict[str, list[dict[str, Any]]] = {client.client_id: [] for client in clients}
        for split, number in (("train", sizes.train), ("test", sizes.test)):
            need = per_kind(source[split], 2 * number)
            for client, items in zip(clients, deal(source[split], [need] * 2, seed, dataset, split), strict=True):
                kinds = store(items, folder, f"dataset/{dataset}/images/{split}-{client.client_id}")
                home = list(kinds)[client.place :: 2] if split == "train" else []
                for index, maker in enumerate(client.tasks):
                    subset = 4 * client.place + index
                    deck = Deck(numpy_rng(seed, "questions", dataset, split, subset), kinds)
                    made = records(deck, [maker], targets(deck, number, home, sizes.skew), split)
                    write_json(folder / "dataset" / dataset / split / f"dataset-{subset}.json", made)
                    if split == "train":
                        slots[client.client_id].append(slot(dataset, subset, made))
        scenario += [
            {"client_id": client.client_id, "datasets": slots[client.client_id], "model_id": client.backbone}
            for client in clients
        ]
        share = -(-sizes.public // len(sources))
        (items,) = deal(source["public"], [per_kind(source["public"], share)], seed, dataset, "public")
        kinds = store(items, folder, f"dataset/{dataset}/images/public")
        deck = Deck(numpy_rng(seed, "questions", dataset, "public"), kinds)
        public += records(deck, [maker for client in clients for maker in client.tasks], targets(deck, share), dataset)
    write_json(folder / "scenarios" / "pictures.json", scenario)
    write_json(folder / "public" / "pictures.json", public[: sizes.public])
    (folder / "defaults.yaml").write_text(yaml.safe_dump(dict(DEFAULTS), sort_keys=False), encoding="utf-8")
    (folder / "README.md").write_text(readme(seed, sizes), encoding="utf-8")


def per_kind(items: Sequence[Item], number: int) -> int:
    """Pictures of each kind for `number` of them in all."""
    return max(FEWEST, -(-number // len({item.kind for item in items})))


def slot(dataset: str, subset: int, made: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The scenario's entry of a task; a question without options is open-ended."""
    options = "Choice list" in made[0]["conversations"][0]["value"]
    entry = {"dataset": dataset, "subset_id": subset, "type": "multi-choice" if options else "open-ended"}
    return entry if options else {**entry, "metric": "F1"}


def readme(seed: int, sizes: Sizes) -> str:
    rows = [f"| {c.client_id} | {c.dataset}-{4 * c.place} to {4 * c.place + 3} | {c.backbone} |" for c in CLIENTS]
    lines = [
        "# A federation of real pictures",
        "",
        f"Made by tools/make_picture_federation.py with seed {seed}: {sizes.train} train and {sizes.test} test records",
        f"per task, {sizes.public} public ones; {sizes.skew:.0%} of the train questions ask for a client's home kinds.",
        "The questions and answers are ours.",
        "",
        "| client | tasks | backbone |",
        "| --- | --- | --- |",
        *rows,
        "",
        "## Licences of the pictures",
        "",
        *(f"- {text}" for text in LICENCES),
        "",
    ]
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with fashion_mnist, mnist and omniglot")
    parser.add_argument("--cifar", type=Path, required=True, help="folder with cifar-100-binary or dataset/CIFAR10")
    parser.add_argument("--out", type=Path, required=True, help="folder to make; it may not hold anything yet")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--train", type=int, default=160, help="train records per task")
    parser.add_argument("--test", type=int, default=50, help="test records per task")
    parser.add_argument("--public", type=int, default=1000, help="public records")
    parser.add_argument("--skew", type=float, default=0.75, help="share of train questions about a client's home kinds")
    asked = parser.parse_args(arguments)
    try:
        make(asked.data, asked.cifar, asked.out, asked.seed, Sizes(asked.train, asked.test, asked.public, asked.skew))
    except UserError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    except OSError as error:
        print(f"{error.filename} cannot be read or written: {error.strerror}.", file=sys.stderr)
        return UserError.exit_code
    return 0


def make(data: Path, cifar_folder: Path, out: Path, seed: int, sizes: Sizes) -> None:
    """Reads the sources and writes the federation; `out` appears only when it is whole."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} is there already and not an empty folder; name another one with --out.")
    if min(sizes.train, sizes.test, sizes.public) < 1 or not 0 <= sizes.skew <= 1:
        raise UserError("The sizes must be at least 1, and --skew lies between 0 and 1.")
    things = cifar(cifar_folder)  # the quickest first, for the sake of a mistyped path
    sources = {"FashionMNIST": fashion_mnist(data), "MNIST": mnist(data), "Omniglot": omniglot(data), "CIFAR": things}
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    try:
        build(sources, partial, seed, sizes)
        partial.chmod(0o755)
        partial.replace(out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
