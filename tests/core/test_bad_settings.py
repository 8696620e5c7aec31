"""Settings that cannot be meant: one sentence and exit code 2 from the command, and nothing on disk."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from pfl_platform.errors import UserError
from pfl_platform.settings import nested, parse

SMALL = "tiny-llama-s"
BAD: dict[str, tuple[list[str], str]] = {  # the parts around the dots stand in the sentence, in this order
    "unknown method": (["--plugin=sfft"], "There is no method called 'sfft'. Did you mean 'sft'?"),
    "a kind that is no method": (["--plugin=lora"], "There is no method called 'lora'."),
    "unknown setting": (["--set=round=3"], "There is no setting 'round'. Did you mean 'rounds'?"),
    "unknown part": (["--set=training.ler=3"], "There is no setting 'training.ler'. Did you mean 'lr'?"),
    "no setting": (["--set=training"], "'training' is no setting; write it as key=value, such as training.lr=1e-3."),
    "unknown option": (["--set=adapter.rank=3"], "There is no option 'rank' of the adapter 'lora'."),
    "unknown option of an observer": (
        ["--set=observers=[{name: progress, heart: 1}]"],
        "There is no option 'heart' of the observer 'progress'. Did you mean 'heartbeat'?",
    ),
    "unknown option of a backbone": (
        ["--set=backbone_options.lenght=3"],
        "Backbone 'tiny-llama-s' has no option 'lenght'. Did you mean 'max_length'?",
    ),
    "option of the wrong kind": (
        ["--set=adapter.r=1.5"],
        "The option 'r' of the adapter 'lora' cannot be 1.5: input should be a valid integer",
    ),
    "infinite option": (["--set=adapter.scale=.inf"], "The option 'scale' of the adapter 'lora' cannot be inf"),
    "value that is none of the words": (
        ["--set=stream.protocol=statc"],
        "The setting 'stream.protocol' cannot be 'statc' (from --set); it is one of: dynamic, static, passes.",
    ),
    "no number": (["--set=training.lr=fast"], "The setting 'training.lr' cannot be 'fast' (from --set)"),
    "not finite": (["--set=training.lr=.inf"], "'training.lr' cannot be inf (from --set): input should be a finite"),
    "not a number": (["--set=training.clip=.nan"], "'training.clip' cannot be nan (from --set): input should be a"),
    "a slip of the finger": (
        ["--set=local_steps=99999999999999999999"],
        "'local_steps' cannot be 99999999999999999999",
    ),
    "more clients than there are": (
        ["--set=cohort=3"],
        "The setting 'cohort' is 3, but 'federation' has 2 clients; 0 takes all of them.",
    ),
    "a client that is not there": (
        ["--set=backbones.c=tiny-llama-s"],
        "The setting 'backbones' names the client 'c', whom 'federation' does not have. Known: a, b.",
    ),
    "rate of nothing": (
        ["--set=training.lr_scale={locl/*: 2}"],
        "The pattern 'locl/*' of training.lr_scale matches no key that trains; the nearest keys are 'local/layer … /",
    ),
    "rate of what does not train": (
        ["--plugin=fedmosaic", "--set=training.lr_scale.global/*=2"],
        "The pattern 'global/*' of training.lr_scale matches no key that trains; the nearest keys are '",
    ),
    "rate below zero": (["--set=training.lr_scale.local/*=-1"], "The setting 'training.lr_scale.local/*' cannot be -1"),
    "parts that do not fit": (
        ["--set=aggregator=fedavg"],
        "The aggregator 'fedavg' needs updates, but the objective 'sft' sends nothing.",
    ),
    "rank that is too large": (["--set=adapter.r=4096"], "Rank 4096 is larger than model.layers.0.self_attn.q_proj of"),
    "no device": (["--set=engine.device=gpu"], "'gpu' is no device; use cpu, cuda, cuda:0, auto or meta."),
    "no recipe": (["--recipe=nothing.yaml"], "The recipe nothing.yaml does not exist."),
    "recipe that is no text": (["--recipe=binary.yaml"], "The file binary.yaml cannot be read: 'utf-8' codec can't"),
    "recipe that is a list": (["--recipe=list.yaml"], "The file list.yaml must hold settings by name"),
    "recipe without end": (["--recipe=deep.yaml"], "Not readable as YAML: deep.yaml: it is nested too deeply."),
    "recipe in itself": (["--recipe=circle.yaml"], "Not readable as YAML: circle.yaml: Circular reference detected."),
    "recipe with a place": (["--recipe=open.yaml"], "Not readable as YAML: open.yaml, line 2, column 1: expected"),
    "recipe with a mistyped client": (
        ["--recipe=client.yaml"],
        "There is no setting 'clients.a.adaptr' (from the recipe client.yaml). Did you mean 'adapter'?",
    ),
    "benchmark of a long name": (["--benchmark=" + "x" * 300], "x: File name too long."),
    "benchmark without a name": (["--benchmark="], "The name of the benchmark is empty."),
    "output that is a file": (["--out=list.yaml"], "The output folder list.yaml is a file."),
    "output below a file": (["--out=list.yaml/run"], "The folder list.yaml/run cannot be made: Not a directory."),
    "output of a long name": (["--out=" + "x" * 300], "x: File name too long."),
    "output that holds something": (
        ["--out=federation"],
        "The folder federation is not empty; name another with --out.",
    ),
    "seeds and a seed": (
        ["--seeds=0,1", "--set=seed=7"],
        "Both --seeds and one seed are given; leave one of them out.",
    ),
    "seeds and another": (["--seeds=0,1", "--seed=7"], "Both --seeds and one seed are given; leave one of them out."),
    "no seeds": (["--seeds=,"], "The value ',' of --seeds is not a list of whole numbers such as 0,1,2."),
    "compared with nothing": (["--compare="], "--compare names no method; name some, separated by commas."),
    "preset that is a number": (["--recipe=preset.yaml"], "The setting 'methods.sft' must hold settings, not 3."),
    "method that is a list": (
        ["--recipe=owner.yaml"],
        "The recipe owner.yaml names the method ['sft'], which is no name.",
    ),
    "name that is a list": (["--set=adapter.name=[lora]"], "The setting 'adapter.name'"),
    "shapes instead of numbers": (["--set=engine.device=meta"], "The device 'meta' holds shapes only"),
    "sketches of an encoder-decoder": (
        ["--plugin=fedmosaic", "--set=aggregator.small_model=tiny-t5"],
        "runs the backbone 'tiny-t5' beside the clients' own, but that one chooses its answers or writes them apart",
    ),
    "misfit of the second run": (
        ["--compare=fedit", "--set=clients.a.adapter.r=2"],
        "The aggregator 'fedavg' combines adapters, which must be of one shape, but that of client 'a' has r=2",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_settings(case: str, federation: Any, pfl: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    where = federation(a=SMALL, b=SMALL)
    Path("binary.yaml").write_bytes(b"\xff\xfe")
    Path("list.yaml").write_text("- a\n", encoding="utf-8")
    Path("deep.yaml").write_text("[" * 5000, encoding="utf-8")
    Path("circle.yaml").write_text("training: &here {more: *here}\n", encoding="utf-8")
    Path("open.yaml").write_text("rounds: [\n", encoding="utf-8")
    Path("client.yaml").write_text("clients: {a: {adaptr: {r: 3}}}\n", encoding="utf-8")
    Path("preset.yaml").write_text("methods: {sft: 3}\n", encoding="utf-8")
    Path("owner.yaml").write_text("method: [sft]\n", encoding="utf-8")
    before = sorted(os.listdir())
    words, expected = BAD[case]
    said = pfl("run", "--plugin=sft", "--benchmark", where, "--out=out", *words)
    assert (said.code, said.out) == (2, "")
    assert said.err.startswith("error: ")
    assert said.err.count("\n") == 1
    rest = said.err
    for part in expected.split(" … "):
        assert part in rest, said.err
        rest = rest.split(part, 1)[1]
    assert sorted(os.listdir()) == before


def test_what_is_not_refused(federation: Any, pfl: Any, tmp_path: Path) -> None:
    """A pattern that a method proposes for its own adapter means nothing under another one, and does no harm."""
    where = federation(a=SMALL, b=SMALL)
    words = ("--plugin=fedmosaic", "--adapter=lora", "--rounds=1", "--set=training.lr_scale.local/*/A=2")
    assert pfl("run", "--benchmark", where, *words, "--out", tmp_path / "run").code == 0


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("{[1]: 2}", "line 1, column 2: a key must be a name"),
        ("{a: 1, a: 2}", "line 1, column 8: the key 'a' occurs twice"),
        ("!!python/object:os.system x", "could not determine a constructor for the tag"),
        ("!!timestamp 2020-99-99", "month must be in 1..12"),
        ("1" * 5000, "Exceeds the limit"),
        ("\x00", "special characters are not allowed"),
        ("a: *b", "found undefined alias"),
        ("[" * 5000, "it is nested too deeply"),
    ],
)
def test_values_that_cannot_be_read(text: str, sentence: str) -> None:
    with pytest.raises(UserError, match="Not readable as YAML: here") as caught:
        parse(text, "here")
    assert sentence in str(caught.value)


def test_names_with_dots_before_a_field() -> None:
    assert nested("clients.site-1.north.adapter.r", 4) == {"clients": {"site-1.north": {"adapter": {"r": 4}}}}
    assert nested("clients", {0: {"adapter": {"r": 4}}}) == {"clients": {"0": {"adapter": {"r": 4}}}}
    assert nested("backbones", {0: "m"}) == {"backbones": {"0": "m"}}
    with pytest.raises(UserError, match=r"no setting 'clients\.a\.r'; it must be of the form clients\.NAME\.adapter"):
        nested("clients.a.r", 4)
