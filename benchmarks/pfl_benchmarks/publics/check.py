"""What is there of a public set: its file, and its pictures."""

from __future__ import annotations

from pfl_benchmarks.checking import counted
from pfl_benchmarks.publics.loading import find_file, load, picture_folder, read
from pfl_benchmarks.publics.options import SETS, PublicOptions
from pfl_platform.data import FilePicture
from pfl_platform.errors import UserError
from pfl_platform.inventory import FileState, Inventory, looked_at


def check(name: str, options: PublicOptions) -> Inventory:
    """The file, and all pictures that it names as one."""
    file = find_file(name, options)
    files = [looked_at(file, file.parent, counted(file), SETS[name].official)]
    try:
        samples = read(name, file, options)
    except UserError as error:
        return Inventory(file.parent, [FileState(file.name, "broken", official=SETS[name].official, said=str(error))])
    named = {picture.path for sample in samples for picture in sample.pictures if isinstance(picture, FilePicture)}
    if named:
        there = sum(path.is_file() for path in named)
        folder = picture_folder(name, file.parent, options)
        said = "" if there == len(named) else f"{len(named) - there:,} of {len(named):,} are missing in {folder}"
        files.append(FileState("pictures", "there" if not said else "missing", there, len(named), said))
    if any(state.state != "there" for state in files):
        return Inventory(file.parent, files)
    try:
        load(name, options)
    except UserError as error:
        return Inventory(file.parent, files, [str(error)])
    return Inventory(file.parent, files)
