"""Bad input of a folder that shows only when backbones read it, and what a run finds later, through the command."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from pfl_benchmarks.folder import pictures
from pfl_model_zoo.cards import PACKAGE
from pfl_platform.cli import main
from pfl_platform.data import FilePicture, Sample, Turn
from pfl_platform.federation import rows
from pfl_platform.federation.rows import Row, check_public, encode
from pfl_platform.federation.setup import public_set
from pfl_platform.plugins import PluginManager
from pfl_platform.store.run_folder import RunFolder

QUICK = (
    "--rounds=2", "--local-steps=2", "--threads=1", "--quiet", "--set=training.batch_size=2", "--set=adapter.r=4",
    "--set=evaluation.max_new_tokens=1", "--set=evaluation.baseline=false", "--set=evaluation.every=1",
    "--set=backbone_options.init=0", "--plugin=sft",
)  # fmt: skip
LONG = "word " * 200
Ends = Callable[..., tuple[int, str, str]]


@pytest.fixture
def real(tiny: Any) -> Any:
    """The tiny federation with backbones that are there."""
    for client in tiny.scenario:
        client["model_id"] = "tiny-llava-llama-s"
    tiny.write()
    return tiny


@pytest.fixture
def ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Ends:
    """`ends(root, ...)` runs a federation into the folder `out` and returns exit code, output and error."""
    monkeypatch.chdir(tmp_path)

    def call(root: Path, *words: str | Path) -> tuple[int, str, str]:
        capsys.readouterr()
        code = main(["run", *QUICK, "--benchmark", str(root), "--out", "out", *map(str, words)])
        return (code, *capsys.readouterr())

    return call


def refusal(ended: tuple[int, str, str]) -> str:
    code, out, err = ended
    assert (code, out, err.count("\n")) == (2, "", 1), err
    assert not Path("out").exists()
    return err.removeprefix("error: ").removesuffix("\n")


class TestRowsThatAreTooLong:
    """Pictures and answers are never cut, so a row that they fill by themselves cannot be read."""

    @pytest.mark.parametrize(
        ("file", "where"),
        [
            ("Sum/train/dataset-0", "Client 'two', task 'Sum-0', train data: Sample 'Sum-0/train/7' needs"),
            ("Colour/train/dataset-0", "Client '1', task 'Colour-0', train data: Sample 'Colour-0/train/7' needs"),
        ],
    )
    def test_answers(self, file: str, where: str, real: Any, ends: Ends) -> None:
        real.records[file][7]["conversations"][1]["value"] = LONG
        real.write()
        sentence = refusal(
            ends(real.root, "--set=benchmark.validation_fraction=0", "--set=backbone_options.max_length=100")
        )
        assert sentence.startswith(where)
        assert sentence.endswith(
            "tokens for pictures and answers alone, but rows of 'tiny-llava-llama-s' have at most 100; raise the "
            "backbone option max_length."
        )

    def test_validation_too(self, real: Any, ends: Ends) -> None:
        for record in real.records["Sum/train/dataset-0"]:
            record["conversations"][1]["value"] = LONG
        real.write()
        words = ("--set=backbone_options.max_length=100", "--set=benchmark.validation_fraction=0.9")
        assert "task 'Sum-0', train data" in refusal(ends(real.root, *words))

    def test_pictures_of_an_unseen_question(self, real: Any, ends: Ends) -> None:
        """A row of one picture and its answer fits, a question with two pictures does not."""
        real.scenario = [real.scenario[0] | {"datasets": real.scenario[0]["datasets"][:1]}]
        real.write()
        unseen = [{"client_id": 9, "datasets": [{"dataset": "Same", "subset_id": 3, "type": "multi-choice"}]}]
        real.put("unseen.json", unseen)
        words = ("--set=benchmark.unseen=unseen.json", "--set=benchmark.scenario=tiny", "--set=evaluation.unseen=true")
        one = re.search(r"needs (\d+) tokens", refusal(ends(real.root, *words, "--set=backbone_options.max_length=8")))
        assert one is not None
        picture = PluginManager().make("backbone", "tiny-llava-llama-s", {"init": 0}).codec.reader.tokens
        question = int(one[1]) - 2 + picture  # without answer and end, with another picture
        sentence = refusal(ends(real.root, *words, f"--set=backbone_options.max_length={question - 1}"))
        assert sentence.startswith(
            f"The unseen task 'Same-3', test data: Sample 'Same-3/test/same#0' needs {question} "
        )
        assert ends(real.root, *words, f"--set=backbone_options.max_length={question}", "--rounds=1")[0] == 0

    def test_long_questions_are_cut_and_no_mistake(self, real: Any, ends: Ends) -> None:
        real.records["Sum/train/dataset-0"][7]["conversations"][0]["value"] = LONG
        real.write()
        assert ends(real.root, "--set=backbone_options.max_length=100", "--rounds=1")[0] == 0

    def test_the_public_set(self, real: Any, ends: Ends) -> None:
        turns = [{"from": "human", "value": "say it"}, {"from": "gpt", "value": LONG}]
        real.put("public/many.json", [{"id": "7", "conversations": turns}])
        words = ("--public=many", "--set=backbone_options.max_length=100")
        assert refusal(ends(real.root, *words)).startswith("The public set: Sample 'public/many/7' needs")
        assert ends(real.root, "--set=backbone_options.max_length=100", "--rounds=1")[0] == 0  # nobody reads it


class Counting:
    """A backbone that only keeps what it is to encode."""

    def __init__(self) -> None:
        self.seen: list[Sample] = []
        self.codec = self

    def encode(self, samples: list[Sample], *, answers: bool) -> None:
        self.seen += samples


class TestHowMuchIsLookedAt:
    def test_large_sets_take_bounded_time(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Of each number of pictures the rows with the longest answers."""
        monkeypatch.setattr(rows, "MOST_ROWS", 20)
        samples = [
            Sample(f"{count}-{length}", (Turn("q", "x" * length),), (rows.BLANK,) * count)
            for count in (0, 2)
            for length in range(500)
        ]
        backbone: Any = Counting()
        check_public([backbone], samples)
        assert {sample.id for sample in backbone.seen} == {
            f"{count}-{length}" for count in (0, 2) for length in range(490, 500)
        }

    def test_samples_that_are_drawn_are_not_all_drawn(self) -> None:
        drawn: list[int] = []

        class Drawn:
            def __len__(self) -> int:
                return 10**6

            def __getitem__(self, index: int) -> Sample:
                drawn.append(index)
                return Sample(str(index), (Turn("q", "a"),))

            def __iter__(self) -> Iterator[Sample]:
                raise AssertionError("all of a million samples were asked for")

        backbone: Any = Counting()
        check_public([backbone], Drawn())  # type: ignore[arg-type]
        assert drawn == [index * 62_500 for index in range(16)]

    def test_no_picture_is_opened_and_the_rows_have_their_length(self, tmp_path: Path) -> None:
        """A blank picture stands for each; what is encoded has as many tokens as with the real ones."""
        file = tmp_path / "a.png"
        Image.new("RGB", (50, 30), (3, 4, 5)).save(file)
        backbone = PluginManager().make("backbone", "tiny-llava-llama-s", {"init": 0})
        sample = Sample("s", (Turn("<image><image> same?", "no"),), (FilePicture(file), FilePicture(file)))
        real = backbone.codec.encode([sample])
        file.unlink()
        lengths: list[int] = []
        encode_one = backbone.codec.encode

        def noting(samples: list[Sample], *, answers: bool = True) -> Any:
            encoded = encode_one(samples, answers=answers)
            lengths.append(encoded.labels.shape[1])
            return encoded

        backbone.codec.encode = noting
        encode(backbone, [Row(sample, "here")], answers=True, most=10)
        assert lengths == [real.labels.shape[1]]
        file_again = Image.new("RGB", (50, 30), (3, 4, 5))
        file_again.save(file)
        assert torch.equal(
            encode_one([sample]).inputs["pixel_values"], real.inputs["pixel_values"]
        )  # no blank is cached


class TestPicturesThatGoBad:
    """What no check before the run can find, or what happens while it runs."""

    @pytest.fixture
    def damaged(self, real: Any) -> Path:
        """A picture with a whole beginning and end and a damaged middle, which `check: header` does not look at."""
        for index in range(10):  # training meets one in the first step
            file: Path = real.root / "dataset" / "Colour" / "images" / f"train-{index}.png"
            Image.effect_noise((64, 64), 99).save(file)
            content = file.read_bytes()
            file.with_suffix(".good").write_bytes(content)
            file.write_bytes(content[:200] + bytes(60) + content[260:])
        return Path(real.root)

    def test_they_are_found_before_the_run(self, damaged: Path, ends: Ends) -> None:
        sentence = refusal(ends(damaged))
        assert "train/dataset-0.json, record 0: the picture" in sentence
        assert "train-0.png is broken or no picture" in sentence

    def test_beyond_the_bound_they_stop_the_run(
        self, damaged: Path, ends: Ends, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(pictures, "FULL_CHECK_LIMIT", 0)
        code, out, err = ends(damaged)
        assert (code, out, err.count("\n")) == (1, "", 1)
        assert "images/train-" in err
        assert (
            "It happened at '1' in round 1, after 0 of its local steps. Finished rounds are kept: go on with "
            "`pfl-platform resume out` (its settings are in out/config.yaml)." in err
        )
        for good in damaged.rglob("*.good"):
            good.rename(good.with_suffix(".png"))
        assert main(["resume", "out", "--quiet"]) == 0

    def test_a_picture_that_vanishes_between_rounds(
        self, real: Any, ends: Ends, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Round 0 is kept; put back, the run goes on and ends as if nothing had happened."""
        words = ("--rounds=3", "--set=stream.protocol=static", "--set=backbone_options.cache_mb=0")
        assert ends(real.root, *words, "--out", "whole")[0] == 0
        folder = real.root / "dataset" / "Colour" / "images"
        commit = RunFolder.commit_round

        def committing(self: RunFolder, index: int, record: Any) -> None:
            commit(self, index, record)
            if folder.exists():
                folder.rename(folder.with_name("away"))

        with monkeypatch.context() as context:
            context.setattr(RunFolder, "commit_round", committing)
            code, _, err = ends(real.root, *words)
        assert code == 1
        assert "does not exist. It happened at '1' in round 2, after" in err
        assert [file.name for file in Path("out/rounds").iterdir()] == ["0000.json"]
        folder.with_name("away").rename(folder)
        assert main(["resume", "out", "--quiet"]) == 0
        for name in ("predictions.jsonl", "adapters/1/adapter_model.safetensors"):
            assert Path("out", name).read_bytes() == Path("whole", name).read_bytes()


class TestBackbones:
    @pytest.fixture
    def own(self, tmp_path: Path) -> Path:
        """A copy of a backbone of the package, in a folder of the user's."""
        shutil.copytree(PACKAGE / "weights" / "tiny-llava-llama-s", tmp_path / "own")
        return tmp_path / "own"

    def change(self, own: Path, how: str) -> None:
        file = own / "model.safetensors"
        match how:
            case "gone":
                file.unlink()
            case "cut off":
                file.write_bytes(file.read_bytes()[:5000])
            case "pickled":
                file.rename(own / "pytorch_model.bin")
            case "of another form":
                file.rename(own / "model.pth")
            case "no configuration":
                (own / "config.json").unlink()
            case "configuration broken":
                (own / "config.json").write_text("{", encoding="utf-8")
            case "of another size":
                config = json.loads((own / "config.json").read_text(encoding="utf-8"))
                config["text_config"]["num_hidden_layers"] += 1
                (own / "config.json").write_text(json.dumps(config), encoding="utf-8")
            case "no tokenizer":
                (own / "tokenizer.json").unlink()

    @pytest.mark.parametrize(
        ("how", "sentence"),
        [
            ("gone", "has no weights; it needs model.safetensors."),
            ("cut off", "The weights of backbone 'tiny-llava-llama-s' in "),
            ("pickled", "are pickled, which can run foreign code; convert them to safetensors, or set the backbone"),
            ("of another form", "are pickled, which can run foreign code; convert them to safetensors"),
            ("no configuration", "does not exist or has no config.json; give a folder"),
            ("configuration broken", "own/config.json is not valid JSON: "),
            ("of another size", "holds a model with 5 layers of width 96, but 'tiny-llava-llama-s' has 4 of width 96;"),
            ("no tokenizer", "The tokenizer of backbone 'tiny-llava-llama-s' in"),
        ],
    )
    def test_files(self, how: str, sentence: str, real: Any, own: Path, ends: Ends) -> None:
        self.change(own, how)
        assert sentence in refusal(
            ends(real.root, "--set=backbone_options.init=null", f"--set=backbone_options.path={own}")
        )

    @pytest.mark.parametrize(
        ("name", "sentence"),
        [
            (
                "tiny-lava-llama-s",
                "There is no backbone called 'tiny-lava-llama-s'. Did you mean 'tiny-llava-llama-s'?",
            ),
            ("llava-qwen2.5-0.5b", "is not in the local hub cache; give its folder with the backbone option path, or"),
            ("tiny-llama-s", "The backbone 'tiny-llama-s' reads text only, but samples of client '1' have pictures;"),
        ],
    )
    def test_names(self, name: str, sentence: str, real: Any, ends: Ends) -> None:
        assert sentence in refusal(ends(real.root, "--backbone", name, "--set=backbone_options.init=null"))

    def test_a_scenario_with_a_backbone_that_is_not_there(self, tiny: Any, ends: Ends) -> None:
        assert refusal(ends(tiny.root)).startswith("There is no backbone called 'tiny-a'. ")


class TestPublicSets:
    @pytest.mark.parametrize(
        ("name", "sentence"),
        [
            (
                "nope",
                "The benchmark 'tiny' has no public set; name a folder or another benchmark that "
                "has one with --public.",
            ),
            ("./nope", "nope does not exist."),
            ("none", "is neither a record file nor a folder with record files (*.json)."),
            ("broken.json", "broken.json is not valid JSON: Expecting value at line 1, column 2."),
            ("theirs.json", "holds nothing that the clients of 'tiny' do not have."),
            ("", "The name of the public set is empty."),
        ],
    )
    def test_wrong_ones(self, name: str, sentence: str, real: Any, ends: Ends) -> None:
        """Whether or not the method reads one: SFT does not."""
        Path("none").mkdir()
        Path("broken.json").write_text("[", encoding="utf-8")
        Path("theirs.json").write_text(json.dumps(real.records["Sum/train/dataset-0"]), encoding="utf-8")
        assert sentence in refusal(ends(real.root, "--public", name))

    def test_that_of_another_benchmark(self, real: Any, ends: Ends) -> None:
        """A fixed draw: its content does not depend on whose clients it is for."""
        code, _, err = ends(real.root, "--public=drake-synth", "--public-size=5")
        assert code == 0, err
        config = RunFolder.open(Path("out")).config
        drawn = public_set(
            config, PluginManager().make("benchmark", "folder", {"path": str(real.root)}), PluginManager()
        )
        own = PluginManager().make("benchmark", "drake-synth", {}).public(None, 5, 0)
        assert [sample.id for sample in drawn] == [sample.id for sample in own]
        assert len(drawn) == 5

    def test_a_name_that_is_mistyped(self, real: Any, ends: Ends) -> None:
        real.put(
            "public/held-out.json", [{"conversations": real.records["Sum/train/dataset-0"][0]["conversations"][:0]}]
        )
        turns = [{"from": "human", "value": "new"}, {"from": "gpt", "value": "x"}]
        real.put("public/held-out.json", [{"conversations": turns}])
        sentence = refusal(ends(real.root, "--public", "heldout"))
        assert sentence == "'heldout' is no public set of 'tiny'. Did you mean 'held-out'?"
