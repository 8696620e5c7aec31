"""What tests of the embedded benchmark see of a sample."""

from __future__ import annotations

import re

from pfl_benchmarks.drake_synth.drawing import DrawnPicture, Scene
from pfl_platform.data import IMAGE_MARK, Sample


def question(sample: Sample) -> str:
    """What is asked, without the marks of pictures in front of it."""
    return re.sub(rf"^(?:(?:\w+: )?{IMAGE_MARK}\n)+", "", sample.turns[0].human)


def scenes(sample: Sample) -> list[Scene]:
    return [picture.scene for picture in sample.pictures if isinstance(picture, DrawnPicture)]
