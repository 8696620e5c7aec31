"""Bad input to a federation in a folder: one sentence that names the file, and the record where there is one."""

from __future__ import annotations

import json
import os
import shutil
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from pfl_benchmarks.folder.plugin import pfl_make_benchmark
from pfl_platform.cli import main

Change = Callable[[Any], Mapping[str, Any] | None]
"""What is done to the tiny federation; returns options for the loader."""

TRAIN = "Colour/train/dataset-0"
FILE = f"dataset/{TRAIN}.json"
PICTURE = "dataset/Colour/images/train-3.png"


def scenario(change: Callable[[list[Any]], Any]) -> Change:
    def apply(tiny: Any) -> None:
        change(tiny.scenario)
        tiny.write()

    return apply


def task(**fields: Any) -> Change:
    return scenario(lambda clients: clients[0]["datasets"][2].update(fields))


def record(index: int, name: str = TRAIN, **fields: Any) -> Change:
    def apply(tiny: Any) -> None:
        tiny.records[name][index].update(fields)
        tiny.write()

    return apply


def turns(*said: tuple[str, Any], name: str = TRAIN) -> Change:
    return record(1, name, conversations=[{"from": speaker, "value": value} for speaker, value in said])


def content(path: str, text: str | bytes) -> Change:
    def apply(tiny: Any) -> None:
        (tiny.root / path).write_bytes(text if isinstance(text, bytes) else text.encode())

    return apply


def remove(path: str) -> Change:
    def apply(tiny: Any) -> None:
        target = tiny.root / path
        shutil.rmtree(target) if target.is_dir() else target.unlink()

    return apply


def link_out(tiny: Any) -> None:
    outside = tiny.root.parent / "outside.png"
    Image.new("RGB", (4, 4)).save(outside)
    (tiny.root / PICTURE).unlink()
    (tiny.root / PICTURE).symlink_to(outside)


def linked(path: str) -> Change:
    """The file or folder is moved out of the federation, with a link in its place."""

    def apply(tiny: Any) -> None:
        outside = tiny.root.parent / "outside"
        (tiny.root / path).rename(outside)
        (tiny.root / path).symlink_to(outside)

    return apply


def put_and_linked(path: str, text: str, name: str = "") -> Change:
    def apply(tiny: Any) -> None:
        tiny.put(path, text)
        linked(name or path)(tiny)

    return apply


def clash(where: int) -> Change:
    """Subset 1-2 of A at the first client, subset 2 of A-1 at the one given."""

    def apply(tiny: Any) -> None:
        for split in ("train", "test"):
            for name in (f"A/{split}/dataset-1-2", f"A-1/{split}/dataset-2"):
                tiny.records[name] = tiny.records[f"Sum/{split}/dataset-0"]
        tiny.scenario[0]["datasets"][0] |= {"dataset": "A", "subset_id": "1-2"}
        tiny.scenario[where]["datasets"][-1] |= {"dataset": "A-1", "subset_id": "2"}
        tiny.write()

    return apply


def pixels(size: int) -> Change:
    """A picture whose header says that it is so wide and so high."""

    def apply(tiny: Any) -> None:
        whole = (tiny.root / PICTURE).read_bytes()
        header = b"IHDR" + size.to_bytes(4, "big") * 2 + whole[24:29]
        (tiny.root / PICTURE).write_bytes(whole[:12] + header + zlib.crc32(header).to_bytes(4, "big") + whole[33:])

    return apply


def link_to_itself(tiny: Any) -> None:
    (tiny.root / PICTURE).unlink()
    (tiny.root / PICTURE).symlink_to(tiny.root / PICTURE)


def pipe(tiny: Any) -> None:
    (tiny.root / PICTURE).unlink()
    os.mkfifo(tiny.root / PICTURE)


def truncate(tiny: Any) -> None:
    Image.effect_noise((32, 32), 99).save(tiny.root / PICTURE)
    (tiny.root / PICTURE).write_bytes((tiny.root / PICTURE).read_bytes()[:200])


def second_scenario(tiny: Any) -> None:
    tiny.put("scenarios/second.json", tiny.scenario)


def options(**values: Any) -> Change:
    return lambda tiny: values


BAD: dict[str, tuple[Change, str]] = {  # the parts around the dots stand in the sentence, in this order
    "no dataset folder": (remove("dataset"), "tiny … has no folder 'dataset'"),
    "no scenario": (remove("scenarios"), "tiny … has no scenario: put one into … scenarios … option 'scenario'"),
    "several scenarios": (second_scenario, "several scenarios; choose … 'scenario': second.json, tiny.json."),
    "unknown scenario": (options(scenario="tinny"), "'tinny' is neither a file nor below … Did you mean 'tiny'?"),
    "missing record file": (
        remove(FILE),
        "tiny.json … the client '1' needs … train/dataset-0.json, which does not exist",
    ),
    "broken scenario": (
        content("scenarios/tiny.json", '[\n {"a" 1}]'),
        "tiny.json is not valid JSON … line 2, column 7",
    ),
    "broken records": (content(FILE, '[{"id": 1},\n'), "dataset-0.json is not valid JSON … line 2, column 1"),
    "not UTF-8": (content(FILE, b'["\xff"]'), "dataset-0.json is not UTF-8: byte 2 is 0xff"),
    "too deep": (content("scenarios/tiny.json", "[" * 100_000), "tiny.json is not valid JSON … nested too deeply"),
    "scenario is no list": (content("scenarios/tiny.json", "{}"), "tiny.json must hold a list of clients … an object"),
    "records are no list": (content(FILE, '"x"'), "dataset-0.json must hold a list of records … a string"),
    "no client": (content("scenarios/tiny.json", "[]"), "tiny.json names no client"),
    "no task": (scenario(lambda s: s[0]["datasets"].clear()), "tiny.json, entry 0 … the client '1' has no task"),
    "only idle": (scenario(lambda s: s[0].update(datasets=s[0]["datasets"][1:2])), "entry 0 … client '1' has no task"),
    "client is no object": (scenario(lambda s: s.append(3)), "entry 2 … an object with client_id … found a number"),
    "duplicate client": (scenario(lambda s: s[1].update(client_id="1")), "entry 1 … client id '1' is there twice"),
    "no client id": (scenario(lambda s: s[1].pop("client_id")), "entry 1: 'client_id' must be … is null"),
    "client id is no name": (scenario(lambda s: s[1].update(client_id=True)), "'client_id' must be … is a truth value"),
    "no datasets": (scenario(lambda s: s[1].pop("datasets")), "entry 1: 'datasets' must be a list"),
    "task list": (scenario(lambda s: s.insert(0, s[0]["datasets"][0])), "entry 0 … not a scenario … clients"),
    "task twice": (
        scenario(lambda s: s[0]["datasets"].append(s[0]["datasets"][0])),
        "'1' has the task 'Colour-0' twice",
    ),
    "one name": (
        clash(0),
        "tiny.json: subset '1-2' of 'A' and subset '2' of 'A-1' would both be the task 'A-1-2'; rename",
    ),
    "one name at two clients": (clash(1), "subset '1-2' of 'A' and subset '2' of 'A-1' would both be the task 'A-1-2'"),
    "key twice": (content(FILE, '[{"id": 1, "image": "a", "id": 2}]'), "dataset-0.json has the key 'id' twice"),
    "key twice in a scenario": (
        content("scenarios/tiny.json", '[{"client_id": 1, "datasets": [{"type": "a", "type": "b"}]}]'),
        "scenarios/tiny.json has the key 'type' twice in one object.",
    ),
    "unknown type": (task(type="multi"), "entry 0, task 2: the type 'multi' is unknown; it is 'multi-choice' or"),
    "type is no name": (task(type=["x"]), "task 2: the type ['x'] is unknown"),
    "metric is no name": (task(metric=1), "task 2: 'metric' is the name of a metric … a number"),
    "data set leaves": (task(dataset="../x"), "task 2: 'dataset' is '../x', which is not allowed"),
    "subset leaves": (task(subset_id=".."), "task 2: 'subset_id' is '..', which is not allowed"),
    "long name": (task(dataset="d" * 300), "task 2: 'dataset' is 300 bytes long, and at most 200 are allowed"),
    "long scenario": (options(scenario="s" * 300), "is neither a file nor below"),
    "adapter is no options": (scenario(lambda s: s[0].update(adapter=4)), "entry 0: 'adapter' holds … is a number"),
    "number without end": (content(FILE, '[{"id": ' + "1" * 5000 + "}]"), "dataset-0.json is not valid JSON: Exceeds"),
    "half a character": (
        turns(("human", "\ud83d"), ("gpt", "x")),
        "train/dataset-0.json holds half of a character (an escape such as \\ud83d without its second half)",
    ),
    "no model": (scenario(lambda s: s[1].pop("model_id")), "the client 'two' has no model_id … 'default_backbone'"),
    "model is no name": (scenario(lambda s: s[1].update(model_id=3)), "entry 1: 'model_id' is the name of a backbone"),
    "unknown model": (options(backbone_map={"tiny-x": "y"}), "'backbone_map' names … 'tiny-x' … tiny.json lacks. Did"),
    "no train data": (content(FILE, "[]"), "The client '1' has no train data … train/dataset-0.json holds no record"),
    "no test data": (content("dataset/Sum/test/dataset-0.json", "[]"), "The client 'two' has no test data"),
    "missing picture": (remove(PICTURE), "train/dataset-0.json, record 3: the picture … train-3.png does not exist"),
    "truncated picture": (truncate, "train/dataset-0.json, record 3: the picture … train-3.png is broken … truncated"),
    "empty picture": (content(PICTURE, ""), "record 3: the picture … train-3.png is broken or no picture"),
    "no picture": (content(PICTURE, "text"), "record 3: the picture … train-3.png is broken or no picture"),
    "link out": (link_out, "record 3: the picture … train-3.png leaves the root … through a link"),
    "records link out": (linked(FILE), "train/dataset-0.json leaves the folder … tiny through a link."),
    "folder of records links out": (linked("dataset/Sum/test"), "Sum/test/dataset-0.json leaves the folder"),
    "scenario links out": (linked("scenarios/tiny.json"), "scenarios/tiny.json leaves the folder … through a link"),
    "scenario by name links out": (
        lambda tiny: (linked("scenarios/tiny.json")(tiny), {"scenario": "tiny"})[1],
        "scenarios/tiny.json leaves the folder",
    ),
    "settings link out": (put_and_linked("defaults.yaml", "rounds: 1"), "defaults.yaml leaves the folder"),
    "public set links out": (put_and_linked("public/a.json", "[]"), "public/a.json leaves the folder"),
    "public folder links out": (put_and_linked("public/a.json", "[]", "public"), "tiny/public leaves the folder"),
    "many pixels": (
        options(max_pixels=143),
        "train/dataset-0.json, record 0: the picture … has 12 x 12 pixels, and the benchmark option 'max_pixels' "
        "allows 143; make it smaller.",
    ),
    "pixels that Pillow warns of": (pixels(13_000), "record 3: … has 13000 x 13000 pixels … allows 89,478,485"),
    "pixels that Pillow refuses": (pixels(20_000), "record 3: … has 20000 x 20000 pixels … allows 89,478,485"),
    "picture is a folder": (record(2, image="dataset/Colour"), "record 2: the picture … Colour is no file"),
    "picture is a pipe": (pipe, "record 3: the picture … train-3.png is no file"),
    "null in a path": (record(2, image="a\0b"), "record 2: the picture path 'a\\x00b' holds a null character"),
    "long path": (record(2, image="a" * 300), "record 2: the picture … does not exist or cannot be read"),
    "link to itself": (link_to_itself, "record 3: the picture … train-3.png does not exist or cannot be read"),
    "path out": (record(2, image="../x.png"), "dataset-0.json, record 2: the picture path '../x.png' leaves the root"),
    "path in and out": (record(2, image="dataset/../../x.png"), "record 2: the picture path … leaves the root"),
    "absolute path": (record(2, image="/etc/x.png"), "record 2: the picture path '/etc/x.png' leaves the root"),
    "drive": (record(2, image="C:\\x.png"), "record 2: the picture path 'C:\\x.png' leaves the root"),
    "image is a number": (record(2, image=[3]), "record 2: 'image' is a path or a list of paths, and holds a number"),
    "image is empty": (record(2, image=""), "record 2: 'image' is a path or a list of paths"),
    "too few pictures": (
        record(1, "Same/test/dataset-3", image=["dataset/Colour/images/test-0.png"]),
        "Same/test/dataset-3.json, record 1: the question has 2 <image> marks and the record 1 pictures",
    ),
    "mark in text": (
        turns(("human", "a <image>"), ("gpt", "x"), name="Sum/test/dataset-0"),
        "Sum/test/dataset-0.json, record 1: the question has 1 <image> marks and the record 0 pictures",
    ),
    "mark in answer": (turns(("human", "x"), ("gpt", "<image>")), "record 1: an answer holds the mark <image>"),
    "record is no object": (content(FILE, "[3]"), "record 0: a record is an object, and this is a number"),
    "no conversations": (record(1, conversations=None), "record 1: 'conversations' must be a list of pairs"),
    "odd turns": (turns(("human", "x")), "record 1: 'conversations' must be a list of pairs"),
    "turns the wrong way": (turns(("gpt", "x"), ("human", "x")), "record 1: turn 0 must be from 'human' … 'gpt'"),
    "turn is no object": (record(1, conversations=[1, 2]), "record 1: turn 0 must be from 'human' … a number"),
    "answer is null": (turns(("human", "x"), ("gpt", None)), "record 1: turn 1 has null as its 'value'"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input(
    tiny: Any, case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One sentence and exit code 2 from the command itself, and nothing on disk."""
    monkeypatch.chdir(tmp_path)
    change, expected = BAD[case]
    given = change(tiny) or {}
    sets = [f"--set=benchmark.{name}={json.dumps(value)}" for name, value in given.items()]
    before = sorted(tmp_path.iterdir())
    assert main(["run", "--plugin", "sft", "--benchmark", str(tiny.root), *sets]) == 2
    out, rest = capsys.readouterr()
    assert out == ""
    assert rest.startswith("error: ")
    assert rest.count("\n") == 1
    for part in expected.split(" … "):
        assert part in rest, rest
        rest = rest.split(part, 1)[1]
    assert sorted(tmp_path.iterdir()) == before


def test_the_tiny_federation_is_sound(tiny: Any) -> None:
    """Without a change nothing is wrong, so each case above fails for its own reason."""
    assert pfl_make_benchmark("folder", {"path": str(tiny.root)}) is not None
