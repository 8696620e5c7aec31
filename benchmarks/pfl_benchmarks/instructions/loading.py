"""A file of conversations to one client, whose held-out questions share no picture with what it learns."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from pathlib import Path

from pfl_benchmarks.folder.content import digest_of
from pfl_benchmarks.folder.pictures import Pictures, paths_of
from pfl_benchmarks.folder.splits import capped
from pfl_benchmarks.instructions.options import InstructionOptions
from pfl_benchmarks.publics.loading import samples_in
from pfl_platform.data import ClientData, FixedBenchmark, Sample, TaskData
from pfl_platform.errors import UserError
from pfl_platform.rng import numpy_rng

NAME = "instructions"


def load(options: InstructionOptions) -> FixedBenchmark:
    """One client, `all`, with one task."""
    file = options.file
    if file is None:
        raise UserError("The benchmark 'instructions' needs a file of records: set its option 'file'.")
    below = options.pictures or file.parent
    if not below.is_dir():
        raise UserError(f"The folder of pictures {below} does not exist or is no folder.")
    found = capped(samples_in(file, below, NAME), options.most, options.data_seed, "records")
    if (
        options.need == "pictures"
        and (bare := next((k for k, one in found.items() if not one.pictures), None)) is not None
    ):
        raise UserError(f"{file}: record {bare} has no picture, and without one there is nothing to learn here.")
    pictures = Pictures(options.max_pixels)
    pictures.add(found, file, below)
    pictures.check(options.check)
    samples = list(found.values())
    train, test = _split(samples, options.held_out, options.data_seed, pictures)
    if not train:
        raise UserError(f"{file} leaves nothing to learn: of {len(samples):,} records {len(test):,} are held out.")
    task = TaskData("instructions", "open-ended", options.metric, train, (), test)
    clients = (ClientData("all", options.backbone, (task,)),)
    notes: tuple[str, ...] = ()
    if dropped := len(samples) - len(train) - len(test):
        notes = (f"{dropped:,} records are not learned, as they share pictures with held-out ones.",)
    content = digest_of(clients, (), {}, pictures)
    return FixedBenchmark(NAME, clients, content, defaults={"stream": {"protocol": "passes"}}, notes=notes)


def _split(
    samples: Sequence[Sample], count: int, seed: int, pictures: Pictures
) -> tuple[tuple[Sample, ...], tuple[Sample, ...]]:
    """(learned, held out): `count` records drawn at random are held out, and of the others those are learned that have
    none of their pictures, by content; of text alone, none of their first questions."""
    order = numpy_rng(seed, "held out").permutation(len(samples))
    chosen = {int(k) for k in order[:count]}
    test = tuple(samples[k] for k in sorted(chosen))
    sizes = {pictures.size(path) for sample in test for path in paths_of(sample)}

    def marks(sample: Sample) -> set[Hashable]:
        """What two records must not have in common; a picture's bytes are read where its size is a held-out one's."""
        files: Sequence[Path] = paths_of(sample)
        if not files:
            return {sample.turns[0].human}
        return {pictures.fingerprint(path) for path in files if pictures.size(path) in sizes}

    held = {mark for sample in test for mark in marks(sample)}
    rest = (sample for k, sample in enumerate(samples) if k not in chosen)
    return tuple(sample for sample in rest if not held & marks(sample)), test
