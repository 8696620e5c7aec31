"""What is there of CIFAR-100's files."""

from __future__ import annotations

from pfl_benchmarks.checking import lines_in
from pfl_benchmarks.cifar100.files import BINARY, read_pictures
from pfl_benchmarks.cifar100.options import NAME, CifarOptions
from pfl_benchmarks.roots import find_root
from pfl_platform.inventory import Inventory, looked_at


def check(options: CifarOptions) -> Inventory:
    """The binary files and the names of the classes."""
    root = find_root(options.root, NAME, "CIFAR-100")
    folder = root / BINARY if (root / BINARY).is_dir() else root
    files = [
        looked_at(path, root, lambda path=path: len(read_pictures(path)), official)  # type: ignore[misc]
        for part, official in (("train", 50_000), ("test", 10_000))
        for path in (folder / f"{part}.bin",)
    ]
    for kind, count in (("fine", 100), ("coarse", 20)):
        path = folder / f"{kind}_label_names.txt"
        files.append(looked_at(path, root, lines_in(path), count))
    return Inventory(root, files)
