"""The embedded benchmark as a plugin: corpora, options, laziness, its page."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
import weakref
from pathlib import Path

import pytest
from pydantic import ValidationError

from drake_synth_support import question
from pfl_benchmarks.drake_synth import lazy, plugin, tables
from pfl_benchmarks.drake_synth.corpus import Corpus, TextCorpus
from pfl_benchmarks.drake_synth.sheet import sheet
from pfl_platform.cli import main
from pfl_platform.data import FixedBenchmark


def test_corpus_shows_every_family_form_and_number_of_pictures() -> None:
    samples = [Corpus(0).sample(index) for index in range(1500)]
    assert {len(sample.pictures) for sample in samples} == {1, 2, 3, 4}
    assert all(not sample.options or set(sample.gold) & set(sample.options) for sample in samples)
    share_open = sum(not sample.options for sample in samples) / len(samples)
    assert 0.15 < share_open < 0.4
    assert sum("[yes, no]" in question(sample) for sample in samples) > 100
    assert sum("[True, False]" in question(sample) for sample in samples) > 100


def test_text_corpus_is_short_and_without_pictures() -> None:
    samples = [TextCorpus(0).sample(index) for index in range(2000)]
    assert all(not sample.pictures and 1 <= len(sample.turns[0].answer.split()) <= 10 for sample in samples)
    assert all(not sample.options or set(sample.gold) & set(sample.options) for sample in samples)
    words = {word for sample in samples for word in re.findall(r"\w+", sample.turns[0].human)}
    assert 200 < len(words) < 500
    assert len({sample.turns[0].human for sample in samples}) > 1000
    by_prompt: dict[str, set[str]] = {}
    for sample in samples:
        if sample.turns[0].human.startswith(("What is the opposite", "How many words", "Which day", "What is ")):
            by_prompt.setdefault(sample.turns[0].human, set()).add(sample.turns[0].answer)
    assert all(len(answers) == 1 for answers in by_prompt.values())


def test_building_is_quick_and_importing_light() -> None:
    started = time.perf_counter()
    made = plugin.build(plugin.Config(num_clients=50))
    assert time.perf_counter() - started < 1
    assert len(made.clients) == 50
    code = (
        "import sys; from pfl_benchmarks.drake_synth import plugin; plugin.build(plugin.Config());"
        "print([m for m in ('torch', 'transformers', 'numpy', 'PIL') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_options_change_what_they_say() -> None:
    base = plugin.build(plugin.Config())
    small = plugin.build(plugin.Config(train_size=8, test_size=4, validation_size=2))
    assert [len(s) for s in (small.clients[0].tasks[0].train, small.clients[0].tasks[0].test)] == [8, 4]
    assert small.clients[0].tasks[0].train[3] == base.clients[0].tasks[0].train[3]
    assert plugin.build(plugin.Config(data_seed=1)).clients[0].tasks[0].train[3] != base.clients[0].tasks[0].train[3]
    assert small.digest() != base.digest() == plugin.build(plugin.Config(backbones="tiny-llava-qwen-s")).digest()
    alike = plugin.build(plugin.Config(backbones="tiny-llava-qwen-s", num_clients=12))
    assert {client.backbone for client in alike.clients} == {"tiny-llava-qwen-s"}
    assert alike.clients[10].tasks[0].test[0] != alike.clients[0].tasks[0].test[0]
    assert plugin.pfl_make_benchmark("another", {"whatever": 1}) is None
    for bad in ({"train_size": 0}, {"trian_size": 5}, {"backbones": "huge"}, {"num_clients": 0}):
        with pytest.raises(ValidationError):
            plugin.pfl_make_benchmark("drake-synth", bad)


def test_defaults_are_run_settings(benchmark: FixedBenchmark) -> None:
    assert benchmark.defaults["rounds"] == 20
    assert benchmark.defaults["local_steps"] == 100
    assert benchmark.defaults["training"]["batch_size"] == 4
    assert benchmark.defaults["evaluation"]["every"] == 5


def test_lazy_samples_behave_like_a_list(benchmark: FixedBenchmark) -> None:
    train = benchmark.clients[3].tasks[1].train
    assert train[-1] is train[159]
    assert list(train[2:5]) == [train[2], train[3], train[4]]
    assert list(train[-3:][::-2]) == [train[159], train[157]]
    assert len(list(train)) == 160
    with pytest.raises(IndexError, match="160"):
        train[160]


def test_drawn_samples_are_not_all_kept(benchmark: FixedBenchmark) -> None:
    """However many clients there are: what is looked at goes, and comes back equal."""
    first = benchmark.clients[0].tasks[1].train[0]
    seen = [weakref.ref(sample.pictures[0]) for client in benchmark.clients for sample in client.tasks[0].train]
    assert sum(picture() is not None for picture in seen) <= lazy.KEPT < len(seen)
    again = benchmark.clients[0].tasks[1].train[0]
    assert again == first
    assert again is not first


def test_the_readme_shows_current_tables() -> None:
    page = (Path(plugin.__file__).parent / "README.md").read_text(encoding="utf-8")
    for table in (tables.client_table(), tables.unseen_table(), tables.language_table(), tables.home_table()):
        assert f"\n{table}\n" in page


def test_a_contact_sheet_shows_pictures_and_questions(benchmark: FixedBenchmark) -> None:
    image = sheet(benchmark.clients[0].tasks[2], 4)
    first = benchmark.clients[0].tasks[2].train[0].pictures[0].load()
    assert image.getpixel((6 + 3 * 10, 6 + 3 * 20)) == first.getpixel((10, 20))
    assert image.width > 3 * 4 * 96


@pytest.mark.slow
def test_no_task_is_at_nothing_or_solved_before_training(tmp_path: Path) -> None:
    """Every backbone on its clients' own forty tasks, with all test items."""
    words = ["--recipe", "full", "--rounds", "1", "--local-steps", "1", "--set", "evaluation.others=false", "--quiet"]
    assert main(["run", "--plugin", "sft", *words, "--out", str(tmp_path / "run")]) == 0
    before = json.loads((tmp_path / "run" / "prepare.json").read_bytes())["baseline"]
    own = {key: score for client, cells in before.items() for key, score in cells.items() if key.startswith(client)}
    assert len(own) == 40
    assert {key: score for key, score in own.items() if not 0 < score < 100} == {}
    assert sum(own.values()) / 40 == pytest.approx(29.7, abs=1.0)
