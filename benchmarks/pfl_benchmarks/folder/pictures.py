"""The picture files behind the samples: inside their root, readable, known by content."""

from __future__ import annotations

import hashlib
import io
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pfl_platform.data import FilePicture, Sample
from pfl_platform.errors import UserError

if TYPE_CHECKING:
    from PIL.Image import Image

Check = Literal["auto", "full", "header"]
FULL_CHECK_LIMIT = 5_000
"""So many pictures `auto` decodes, the ones that records name first; of the rest it reads beginning and end."""
MOST_PIXELS = 89_478_485
"""More pixels than this Pillow takes for an attack: a quarter of a gibibyte as RGB."""
END_MARKS = {"PNG": b"IEND\xaeB`\x82", "JPEG": b"\xff\xd9", "GIF": b"\x3b"}
"""What the last bytes of a whole file are, by Pillow's name of the format."""
SIZE_FIELDS = {"WEBP": (4, 8), "BMP": (2, 0)}
"""Where a file says how long it is: position of four bytes, little-endian, and what they leave out."""


class Pictures:
    """Picture files, each with its root and the record that names it first: added, then checked once.

    max_pixels: a picture with more is refused. Where that is above Pillow's own limit, Pillow's is raised to it for the
    whole process, as pictures are opened again when they are used.
    """

    def __init__(self, max_pixels: int = MOST_PIXELS) -> None:
        self._max_pixels = max_pixels
        self._named_at: dict[Path, tuple[str, Path]] = {}
        self._checked: set[Path] = set()
        self._sizes: dict[Path, int] = {}
        self._fingerprints: dict[Path, str] = {}
        self._decoded: set[Path] = set()

    def add(self, samples: Mapping[int, Sample], file: Path, root: Path) -> None:
        """Notes the pictures of samples, given by their record's index in `file`; they must lie below `root`."""
        for index, sample in samples.items():
            for path in paths_of(sample):
                self._named_at.setdefault(path, (f"{file}, record {index}", root))

    def check(self, how: Check) -> None:
        """Every picture exists inside the root, is not too large, and is whole.

        `full` decodes it and remembers its fingerprint. `header` reads its beginning and its end, which finds a file
        that was cut off but not one with a damaged middle; where the end says nothing, the file is decoded after all.
        """
        decoded = {"full": len(self._named_at), "header": 0, "auto": FULL_CHECK_LIMIT}[how]
        roots = {root: root.resolve() for _, root in self._named_at.values()}
        for path, (where, root) in self._named_at.items():
            if path in self._checked:
                continue
            try:
                if not path.resolve(strict=True).is_relative_to(roots[root]):
                    raise UserError(f"{where}: the picture {path} leaves the root {root} through a link.")
                self._sizes[path] = path.stat().st_size
            except (OSError, RuntimeError) as error:  # RuntimeError: links that go round in a circle
                raise UserError(f"{where}: the picture {path} does not exist or cannot be read.") from error
            if not path.is_file():
                raise UserError(f"{where}: the picture {path} is no file.")
            self._decode(path, where, full=len(self._checked) < decoded)
            self._checked.add(path)

    def _decode(self, path: Path, where: str, *, full: bool) -> None:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # odd metadata does no harm to pixels
                if full:
                    data = path.read_bytes()
                    with self._opened(io.BytesIO(data), path, where) as image:
                        image.load()
                    self._fingerprints[path] = hashlib.sha256(data).hexdigest()
                    self._decoded.add(path)
                else:
                    with self._opened(path, path, where) as image:
                        if not self._ends(path, image.format or ""):
                            image.load()
        except UserError:
            raise
        except Exception as error:  # decoders raise many types; each means that this file is no whole picture
            raise UserError(f"{where}: the picture {path} is broken or no picture: {str(error).rstrip('.')}.") from None

    @contextmanager
    def _opened(self, source: Path | io.BytesIO, path: Path, where: str) -> Iterator[Image]:
        """The picture before its pixels are decoded. Its size is looked at here and not by Pillow, which only warns of
        some large pictures and says of others that they are an attack."""
        from PIL import Image as images

        limit = images.MAX_IMAGE_PIXELS
        images.MAX_IMAGE_PIXELS = None
        try:
            image = images.open(source)
        finally:
            images.MAX_IMAGE_PIXELS = limit if limit is None else max(limit, self._max_pixels)
        with image:
            width, height = image.size
            if width * height > self._max_pixels:
                raise UserError(
                    f"{where}: the picture {path} has {width} x {height} pixels, and the benchmark option 'max_pixels' "
                    f"allows {self._max_pixels:,}; make it smaller."
                )
            yield image

    def _ends(self, path: Path, form: str) -> bool:
        """Whether the file ends as a whole one does. False where it cannot be told: bytes may follow the mark."""
        with path.open("rb") as file:
            if form in SIZE_FIELDS:
                position, more = SIZE_FIELDS[form]
                file.seek(position)
                return int.from_bytes(file.read(4), "little") + more <= self._sizes[path]
            mark = END_MARKS.get(form)
            if mark is None or self._sizes[path] < len(mark):
                return False
            file.seek(-len(mark), io.SEEK_END)
            return file.read() == mark

    def size(self, path: Path) -> int:
        """Bytes in the file."""
        if path not in self._sizes:
            self._sizes[path] = path.stat().st_size
        return self._sizes[path]

    def fingerprint(self, path: Path) -> str:
        """SHA-256 of the file, computed once."""
        if path not in self._fingerprints:
            self._fingerprints[path] = hashlib.sha256(path.read_bytes()).hexdigest()
        return self._fingerprints[path]

    def describe(self, path: Path) -> str:
        """A picture's content, for the benchmark's digest: its bytes where it was decoded, else path and size. (That
        its bytes were read for another reason, as when two files have one size, must not change the digest.)"""
        if path in self._decoded:
            return self._fingerprints[path]
        return f"{path.relative_to(self._named_at[path][1])}:{self.size(path)}"


def paths_of(sample: Sample) -> tuple[Path, ...]:
    """The files of a sample's pictures."""
    return tuple(picture.path for picture in sample.pictures if isinstance(picture, FilePicture))
