"""A paper's table as one command: every recipe plans, a miniature runs, stops, goes on and is compared."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from pfl_platform.cli.launching import Ask
from pfl_platform.cli.planning import Planning, Rates
from pfl_platform.cli.reproducing import Order
from pfl_platform.config import RunConfig
from pfl_platform.errors import UserError
from pfl_platform.federation import session
from pfl_platform.ledger.estimates import estimate, questions
from pfl_platform.ledger.working import LARGE, SMALL, Tracer, Work, form_of
from pfl_platform.outlines import row_of
from pfl_platform.plugins import PluginManager
from pfl_platform.published import find_table, tables
from pfl_platform.recipes import Request, Resolver
from pfl_platform.settings import read

TABLES = tables()
LESS = (
    "--set=rounds=2", "--set=local_steps=1", "--set=evaluation.items=1", "--set=evaluation.others=false",
    "--set=evaluation.max_new_tokens=2", "--threads=1", "-q",
)  # fmt: skip
ONE = ("reproduce", "fedmosaic/table2-drake", "--scale", "tiny", "--row", "SFT", "--row", "FedIT")


def order(table: str, scale: str = "full", **more: Any) -> Order:
    given: dict[str, Any] = {"seeds": "3", "rows": (), "options": {}, "sets": (), "out": None}
    return Order(table, scale, **{**given, **more}, ask=Ask(()), json=False, quiet=True)


@pytest.fixture(scope="module")
def planning(tmp_path_factory: pytest.TempPathFactory) -> Planning:
    """One trace stands for those of all methods, so that all tables are planned in seconds: what each method runs is
    seen to in `test_costs`."""
    found = Planning(Rates(100.0), tmp_path_factory.mktemp("plans"), steps=1)
    work = found.tracer.work(found.resolver.resolve(Request("fedit")))
    vars(found)["tracer"] = OneWork(work)
    return found


@dataclass(frozen=True)
class OneWork:
    """Implements what plans ask of a `Tracer`."""

    known: Work

    def work(self, config: RunConfig) -> Work:
        return self.known


@pytest.mark.parametrize("title", TABLES)
def test_every_table_plans(title: str, planning: Planning, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PFL_DATA", raising=False)
    found = planning.plan(order(title))
    assert found["runs"] == 3 * len(found["rows"]) > 0
    for row in found["rows"]:
        assert row["train"] > 0
        assert row["evaluation"] > 0
        assert row["memory"] > 2 * max(model["params"] for model in found["models"])
        assert row["gpu_hours"] == pytest.approx(3 * row["flops"] / 3.6e17)
    for item in (*found["models"], *found["data"]):
        assert item["state"] == "there" or item["how"]
    assert all(item["state"] == "missing" for item in found["data"])  # there is no folder of data


@pytest.mark.parametrize("title", TABLES)
def test_every_table_has_a_miniature(title: str, planning: Planning) -> None:
    table, resolver = TABLES[title], planning.resolver
    small = Request(recipe=str(table.file), tiny=True)
    rows = resolver.rows(small)
    assert set(rows) >= set(resolver.rows(Request(recipe=str(table.file))))
    for row in rows:
        config = resolver.resolve(Request(recipe=str(table.file), row=row, tiny=True))
        assert all(name.startswith("tiny-") for name in planning.uses(config))
        assert config.label == row
        assert config.tune is None
        assert config.rounds <= 30


def test_a_table_is_found_by_its_title_and_its_recipe() -> None:
    assert find_table("osrm-table1") == find_table("osrm/table1")
    with pytest.raises(UserError, match="Did you mean 'osrm/table1'"):
        find_table("osrm/tabel1")
    assert {table.paper for table in TABLES.values()} >= {"fedmosaic", "osrm", "potara", "guidance"}


def test_rows_of_a_miniature_keep_their_proportions(planning: Planning) -> None:
    table = TABLES["fedmosaic/table2-drake"]
    steps = {
        row: planning.resolver.resolve(Request(recipe=str(table.file), row=row, tiny=True)).local_steps
        for row in ("SFT", "FedSim", "DITTO")
    }
    assert steps == {"SFT": 4, "FedSim": 3, "DITTO": 2}  # 100, 75 and 50 over 25


def test_a_section_tiny_is_laid_over_rows(tmp_path: Path) -> None:
    file = tmp_path / "x-table.yaml"
    file.write_text(
        "method: fedit\nbenchmark: sni\nbackbones: {'*': llama-3.2-3b}\n"
        "rows: {a: {rounds: 30, adapter: {r: 64}},\n"
        "  b: {rounds: 3, aggregator: {name: rela, small_model: llama-3.2-1b}}}\n"
        "tiny: {divide: {rounds: 10, adapter.r: 16}, training: {lr: 0.5}, rows: {b: {rounds: 7}}}\n",
        encoding="utf-8",
    )
    resolver = Resolver(PluginManager(), outlined=True)
    first, second = (resolver.resolve(Request(recipe=str(file), row=row, tiny=True)) for row in "ab")
    assert (first.rounds, first.adapter.options["r"], first.training.lr) == (1, 4, 0.5)  # 30 / 5 of the card / 10
    assert (second.rounds, second.backbones) == (7, {"*": "tiny-llama-m"})
    assert second.aggregator.options == {"small_model": "tiny-llama-s"}
    assert first.benchmark.options["train_size"] == 60


def test_a_row_is_traced_with_its_own_options(planning: Planning, tmp_path: Path) -> None:
    """FedMosaic's row: both adapters in one pass, and one more through the small backbone every tenth step."""
    row = Request(recipe=str(TABLES["fedmosaic/table2-drake"].file), row="FedMosaic")
    config = planning.resolver.resolve(row)
    work = Tracer(tmp_path, planning.manager).work(config)
    for place in (SMALL, LARGE):
        passes = {(kind.backbone, kind.gradient): rows for kind, rows in work.step[place].items()}
        assert passes[place, True] == pytest.approx(1, rel=0.1)
        assert passes[SMALL, False] == pytest.approx(0.1, rel=0.2)
    assert (work.trained, work.slots, work.passes) == (1, 2, 1)
    assert work.before  # its alignment


def test_traces_are_shared_by_what_differs_in_fractions_alone(planning: Planning) -> None:
    table = str(TABLES["osrm/figure4"].file)
    rows = ("TA, merge_coef=0.1", "TA, merge_coef=1.2", "TA, OSRM, merge_coef=0.1", "TIES, merge_coef=0.1")
    forms = [form_of(planning.resolver.resolve(Request(recipe=table, row=row))) for row in rows]
    assert forms[0] == forms[1]
    assert len(set(forms)) == 3


def test_estimates_are_near_what_a_run_books(tmp_path: Path) -> None:
    """The formula's FLOPs of a small run's training, against those of its plan at the run's own length of rows."""
    manager = PluginManager()
    sets = ("rounds=2", "local_steps=5", "benchmark.train_size=20", "benchmark.num_clients=4", "evaluation.items=1",
            "evaluation.others=false", "evaluation.baseline=false", "engine.threads=1",
            "benchmark.backbones=tiny-llava-llama-s")  # fmt: skip
    config = Resolver(manager).resolve(Request("ditto", "drake-synth", sets=sets))
    results = session.run(config, tmp_path / "run", quiet=True)
    booked = results["cost"]["flops_formula"]
    benchmark = manager.make("benchmark", "drake-synth", config.benchmark.options)
    plans = Planning(Rates(1.0), tmp_path, steps=5)
    found = estimate(
        config, benchmark, plans.tracer.work(config), plans.shapes, row_of("drake-synth"), plans.public_size(config)
    )
    assert 0.5 < found.train / booked < 2.0  # the card says how long a row is, the run counts its own
    assert questions(config, benchmark) == {
        f"client-{index}": 4 for index in range(4)
    }  # four tasks, once, after the second round


def test_a_table_runs_stops_goes_on_and_is_compared(
    pfl: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "table"
    words = (*ONE, *LESS, "--seeds", "2", "--out", out)
    before, ran = session.run, []

    def run(config: Any, folder: Path, **more: Any) -> Any:
        ran.append(folder.relative_to(out).as_posix())
        if len(ran) == 3:
            raise UserError("Somebody pulled the plug.")
        return before(config, folder, **more)

    monkeypatch.setattr(session, "run", run)
    assert pfl(*words).code == 2
    assert not (out / "manifest.json").exists()
    said = pfl(*words)
    assert said.code == 0, said.err
    assert ran == ["SFT/seed0", "SFT/seed1", "FedIT/seed0", "FedIT/seed0", "FedIT/seed1"]
    assert "ours beside theirs (miniature)" in said.out
    assert "A MINIATURE" in (out / "table.md").read_text(encoding="utf-8")
    assert (out / "table.png").stat().st_size > 1000
    found = json.loads((out / "manifest.json").read_text(encoding="utf-8"))
    assert (found["scale"], found["seeds"], len(found["runs"])) == ("tiny", [0, 1], 4)
    assert {row["row"]: row["theirs"] for row in found["rows"]} == {"SFT": 65.79, "FedIT": 66.11}
    for run_ in found["runs"]:
        assert len(run_["config_sha256"]) == 64
        assert {"versions", "benchmark", "backbones", "threads"} <= set(run_["pins"])
        assert all(digest for digest in run_["pins"]["backbones"].values())
    assert {"processor", "cores", "memory_gib", "accelerators"} == set(found["machine"])
    means = [run_["summary"]["self"]["last"]["mean"] for run_ in found["runs"] if run_["row"] == "SFT"]
    (row,) = [row for row in found["rows"] if row["row"] == "SFT"]
    assert row["ours"] == pytest.approx(sum(means) / 2)
    assert row["difference"] == pytest.approx(row["ours"] - 65.79)
    assert pfl(*words[:-4], "--seeds", "3", "--out", out).err.startswith("error: The folder")  # other runs
    board(pfl, out, tmp_path)


def board(pfl: Callable[..., Any], out: Path, folder: Path) -> None:
    """The page of what was run: rows of the manifest and a run of its own, whatever their names."""
    manifest = json.loads((out / "manifest.json").read_text(encoding="utf-8"))
    for part in ("rows", "runs"):
        manifest[part] = [{**item, "row": item["row"].replace("SFT", "<b>SFT</b>")} for item in manifest[part]]
    (out / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    page = folder / "board.html"
    assert pfl("leaderboard", out, out / "FedIT" / "seed0", "--out", page).code == 0
    reader = Page()
    text = page.read_text(encoding="utf-8")
    reader.feed(text)
    assert [row[1] for row in reader.rows] == ["<b>SFT</b>", "FedIT", "FedIT"]
    assert len({len(row) for row in reader.rows}) == 1
    assert len(reader.rows[0]) == reader.heads
    assert reader.sort_keys[0][6] != ""  # two seeds have a deviation, a single run has none
    assert reader.sort_keys[2][6] == ""
    assert not reader.elsewhere
    assert "http" not in text
    assert pfl("leaderboard", out, "--out", page).code == 0, "a leaderboard is made anew"
    results = out / "FedIT" / "seed0" / "results.json"
    kept = results.read_bytes()
    refused = pfl("leaderboard", out, "--out", results)
    assert (refused.code, "is there and is no leaderboard" in refused.err) == (2, True)
    assert results.read_bytes() == kept
    assert "is given twice" in pfl("leaderboard", out, out, "--out", page).err
    (folder / "empty").mkdir()
    refused = pfl("leaderboard", folder / "empty", "--out", page)
    assert refused.code == 2
    assert "has no manifest.json and is no finished run" in refused.err


class Page(HTMLParser):
    """The cells of a page's table, and what it would fetch."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.sort_keys: list[list[str]] = []
        self.heads = 0
        self.elsewhere: list[str] = []
        self._in_cell = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elsewhere += [value or "" for name, value in attrs if name in ("src", "href")]
        self.heads += tag == "th"
        self._in_cell = tag == "td"
        if tag == "tr":
            self.rows.append([])
            self.sort_keys.append([])
        if tag == "td":
            self.rows[-1].append("")
            self.sort_keys[-1].append(dict(attrs)["data-sort"] or "")

    def handle_data(self, data: str) -> None:
        if self._in_cell:
            self.rows[-1][-1] += data

    def handle_endtag(self, tag: str) -> None:
        self._in_cell = False
        if tag == "thead":
            self.rows, self.sort_keys = [], []


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("reproduce", "nobody"), "There are no tables of 'nobody'"),
        (("reproduce", "osrm/table99"), "There is no table 'osrm/table99'"),
        (("reproduce", "osrm/table1", "--scale", "huge"), "--scale is one of full and tiny"),
        (("reproduce", "osrm/table1", "--plan", "--tflops", "0"), "--tflops is 0"),
        (("reproduce", "osrm/table1", "--plan", "--tflops", "nan"), "--tflops is nan"),
        (("reproduce", "osrm/table1", "--plan", "--row", "nobody"), "has no row 'nobody'"),
        (("reproduce", "osrm/table1", "--seeds", "0"), "--seeds is a number of seeds"),
        (("reproduce", "osrm/table1"), "Where are the files of GLUE?"),
    ],
)
def test_bad_input_is_one_sentence(
    words: tuple[str, ...], sentence: str, pfl: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PFL_DATA", raising=False)
    said = pfl(*words)
    assert said.code == 2
    assert sentence in said.err


def test_a_list_of_tables(pfl: Callable[..., Any]) -> None:
    whole, one = pfl("reproduce").out, pfl("reproduce", "guidance").out
    assert all(title in whole for title in TABLES)
    assert one.count("guidance/") == 3
    assert "osrm/" not in one
    assert {file.stem for file in (table.file for table in TABLES.values())} >= {"osrm-table1", "guidance-table3"}
    assert all(read(table.file)["summary"] for table in TABLES.values())
