"""Tables: the right number in the right place, and whole at every width."""

from __future__ import annotations

import io
import itertools
from typing import Any

import pytest
from rich.cells import cell_len
from rich.console import Console, RenderableType

from pfl_platform.evaluation.matrix import report_of
from pfl_platform.report import units
from pfl_platform.report.grids import Grid, client_grid, compare_grid, excerpt
from pfl_platform.report.markdown import compare_markdown, results_markdown, to_markdown
from pfl_platform.report.tables import compare_table, pieces, results_table

BACKBONES = ("tiny-llava-llama-s", "tiny-llava-qwen-m")


def a_run(method: str = "mine", seed: int = 0, clients: int = 3, others: bool = True, **options: Any) -> dict[str, Any]:
    """Client k has one task; after round 1 its Self is 10 k + seed, after round 2 20 more; Others half of that."""
    ids = [f"client-{index}" for index in range(clients)]

    def cells(index: int, score: float) -> dict[str, float]:
        foreign = {f"{other}:task-{other}": score / 2 for other in ids if other != ids[index]} if others else {}
        return {f"{ids[index]}:task-{ids[index]}": score, **foreign}

    return report_of(
        config={"method": method, "seed": seed, "rounds": 2, "local_steps": 30, "objective": {"options": options}},
        benchmark="bench",
        backbones=dict(zip(ids, itertools.cycle(BACKBONES), strict=False)),
        matrix={
            round_index: {
                client: cells(index, 10 * index + 20 * round_index + seed) for index, client in enumerate(ids)
            }
            for round_index in (0, 1)
        },
        baseline={client: cells(index, 5.0) for index, client in enumerate(ids)},
        costs={
            client: {"seconds": 30.0 * index, "up_payload": 1_500_000 * index, "up_wire": 1, "down_payload": 999}
            for index, client in enumerate(ids)
        },
    )


def shown(renderable: RenderableType, width: int, **options: Any) -> list[str]:
    file = io.StringIO()
    Console(file=file, width=width, **options).print(renderable)
    return file.getvalue().splitlines()


def column(grid: Grid, *head: str) -> tuple[str, ...]:
    (found,) = [item.cells for item in grid.columns if item.head == head]
    return found


def test_one_run_by_hand() -> None:
    """Self: 0, 10, 20 after round 1 and 20, 30, 40 after round 2; before 5. Others: half of Self."""
    grid = client_grid(a_run())
    assert grid.title == "mine on bench, seed 0: 2 rounds of 30 local steps"
    assert column(grid, "", "client") == ("client-0", "client-1", "client-2", "mean", "minimum")
    assert column(grid, "", "backbone") == (BACKBONES[0], BACKBONES[1], BACKBONES[0], "", "")
    assert column(grid, "Self", "A_last") == ("20.00", "30.00", "40.00", "30.00", "20.00")
    assert column(grid, "Self", "A_AUC") == ("10.00", "20.00", "30.00", "20.00", "10.00")
    assert column(grid, "Self", "start") == ("5.00", "5.00", "5.00", "5.00", "5.00")
    assert column(grid, "Self", "gain") == ("+15.00", "+25.00", "+35.00", "+25.00", "+15.00")
    assert column(grid, "Others", "A_last") == ("10.00", "15.00", "20.00", "15.00", "10.00")
    assert column(grid, "Others", "A_AUC") == ("5.00", "10.00", "15.00", "10.00", "5.00")
    assert column(grid, "bytes", "up") == ("0 B", "1.50 MB", "3.00 MB", "1.50 MB", "")
    assert column(grid, "bytes", "down") == ("999 B", "999 B", "999 B", "999 B", "")
    assert column(grid, "", "time") == ("0.0 s", "30.0 s", "1 min 00 s", "30.0 s", "")
    assert "after rounds 1, 2" in grid.notes[0]
    assert grid.notes[3].endswith("minus its last): -20.00, most at client-0 (-20.00).")  # each gained 20
    assert "lowest at client-0; standard deviation over clients 8.16" in grid.notes[1]  # sqrt(200 / 3)
    assert "all clients 4.50 MB up and 3.00 kB down, serialised 3 B and 0 B" in grid.notes[2]


def test_what_was_not_measured_has_no_column_or_a_dash() -> None:
    alone = client_grid(a_run(others=False))
    assert not [item for item in alone.columns if item.head[0] in ("Others", "Unseen")]
    run = a_run()
    run["clients"]["client-1"]["others"]["last"] = None
    assert column(client_grid(run), "Others", "A_last") == ("10.00", "-", "20.00", "15.00", "10.00")


def test_unseen_tasks_have_a_column_when_there_are_any() -> None:
    run = a_run(clients=2)
    for client in run["clients"].values():
        client["unseen"]["last"] = 12.0
    run["summary"]["unseen"]["last"] = {"mean": 12.0, "std": 0.0, "min": 12.0, "min_client": "client-0", "count": 2}
    assert column(client_grid(run), "Unseen", "A_last") == ("12.00", "12.00", "12.00", "12.00")


def test_a_run_without_evaluation_is_still_a_table() -> None:
    run = report_of(
        config={"method": "m", "seed": 0, "rounds": 1, "local_steps": 1},
        benchmark="b",
        backbones={"a": "x"},
        matrix={},
        baseline={},
        costs={},
    )
    assert column(client_grid(run), "Self", "A_last") == ("-", "-", "-")
    assert any("1 round of 1 local step" in line for line in shown(results_table(run), 80))
    assert column(compare_grid([run]), "Self", "minimum") == ("-",)


def test_several_runs_by_hand() -> None:
    """Seeds 0, 2 of `mine`: means over clients 30 and 32, so 31 with deviation sqrt(2) = 1.41."""
    grid = compare_grid([a_run(seed=0), a_run("base", seed=0), a_run(seed=2)])
    assert grid.title == "3 runs on bench"
    assert column(grid, "", "method") == ("mine", "base")
    assert column(grid, "", "seeds") == ("2", "1")
    assert column(grid, "Self", "A_last") == ("31.00 ± 1.41", "30.00")
    assert column(grid, "Self", "minimum") == ("21.00 ± 1.41", "20.00")
    assert column(grid, "Self", "gain") == ("+26.00 ± 1.41", "+25.00")
    assert column(grid, "Others", "A_AUC") == ("10.50 ± 0.71", "10.00")
    assert column(grid, "bytes", "up") == ("1.50 MB", "1.50 MB")
    assert column(grid, "", "time") == ("30.0 s", "30.0 s")
    assert "over seeds 0, 2" in grid.notes[0]
    assert grid.notes[-1].endswith("minus its last): mine -20.00 ± 0.00, base -20.00.")


def grids() -> list[Grid]:
    seeds = [a_run(method, seed) for method in ("a-long-method-name", "b") for seed in (0, 1, 2)]
    ablation = [a_run("b", seed, tau=0.5, gradient="training", aligned="one-sided") for seed in (0, 1)]
    return [client_grid(a_run(clients=12)), client_grid(a_run(others=False)), compare_grid([*seeds, *ablation])]


@pytest.mark.parametrize("width", [60, 80, 100, 120, 200])
@pytest.mark.parametrize("index", [0, 1, 2])
def test_every_number_is_whole_at_every_width(index: int, width: int) -> None:
    from pfl_platform.report.tables import Page

    grid = grids()[index]
    lines = shown(Page(grid), width)
    assert all(cell_len(line) <= width for line in lines)
    words = "\n".join(lines)
    for item in grid.columns:
        if item.part != "key":
            assert all(cell in words for cell in item.cells), item.head
    assert "…" not in words
    assert "\x1b" not in words  # no colours where there is no terminal
    assert [item for piece in pieces(grid, width) for item in piece if item.part != "key"] == [
        item for item in grid.columns if item.part != "key"
    ]


def test_the_width_decides_how_many_tables_there_are() -> None:
    """Ten clients on four backbones with ten-letter names: what a newcomer sees at 80 and at 120 columns."""
    grid = client_grid(a_run(clients=10))
    assert [len(piece) for piece in pieces(grid, 80)] == [2 + 6, 2 + 3]
    assert [len(piece) for piece in pieces(grid, 120)] == [2 + 9]


def test_of_very_many_clients_the_ends_are_shown_and_markdown_has_all() -> None:
    results = a_run(clients=80, others=False)  # Self rises with the number of the client
    shown = excerpt(client_grid(results), results)
    clients = shown.columns[0].cells
    assert clients == (*(f"client-{k}" for k in (*range(15), *range(65, 80))), "mean", "minimum")
    assert shown.columns[2].cells[-2:] == client_grid(results).columns[2].cells[-2:], "of all 80"
    assert "Of 80 clients, the 15 with the lowest" in shown.notes[0]
    assert "client-40 " in results_markdown(results)
    few = a_run(clients=60, others=False)
    assert excerpt(client_grid(few), few).height == 62


def test_a_screen_that_knows_no_unicode() -> None:
    file = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    Console(file=file, width=100).print(compare_table([a_run(seed=0), a_run(seed=1)]))
    file.flush()
    text = file.buffer.getvalue().decode("ascii")  # type: ignore[attr-defined]
    assert "30.50 +/- 0.71" in text


def test_the_mean_is_bold_on_a_terminal() -> None:
    lines = shown(results_table(a_run()), 120, force_terminal=True, color_system="standard", legacy_windows=False)
    assert [line for line in lines if "mean " in line and "\x1b[1m" in line and "30.00" in line]


def test_markdown_has_the_same_cells() -> None:
    lines = results_markdown(a_run(clients=2)).splitlines()
    assert lines[:3] == [
        "**mine on bench, seed 0: 2 rounds of 30 local steps**",
        "",
        "| client | backbone | Self A_last | Self A_AUC | Self start | Self gain "
        "| Others A_last | Others A_AUC | bytes up | bytes down | time |",
    ]
    assert lines[3] == "| --- | --- |" + " ---: |" * 9
    assert lines[4] == (
        "| client-0 | tiny-llava-llama-s | 20.00 | 10.00 | 5.00 | +15.00 | 10.00 | 5.00 | 0 B | 999 B | 0.0 s |"
    )
    assert lines[6].startswith("| **mean** |  | **25.00** |")
    assert lines[7].startswith("| minimum |  | 20.00 |")
    assert lines[-1].startswith("Forgetting (best earlier score")


@pytest.mark.parametrize("index", [0, 1, 2])
def test_every_markdown_row_has_every_column(index: int) -> None:
    grid = grids()[index]
    rows = [line for line in to_markdown(grid).splitlines() if line.startswith("|")]
    assert len(rows) == 2 + grid.height
    assert {row.count("|") for row in rows} == {len(grid.columns) + 1}


def test_a_bar_in_a_name_does_not_break_the_markdown() -> None:
    assert "| a\\|b |" in compare_markdown([a_run("a|b")])


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (1, "1 B"),
        (999.4, "999 B"),
        (999.6, "1.00 kB"),
        (9_994, "9.99 kB"),
        (9_996, "10.0 kB"),
        (99_960, "100 kB"),
        (3e17, "300 PB"),
    ],
)
def test_bytes_keep_three_digits(count: float, text: str) -> None:
    assert units.byte_text(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(59.4, "59.4 s"), (59.6, "1 min 00 s"), (3599.6, "1 h 00 min"), (86_399, "23 h 59 min"), (90_000, "1 d 01 h")],
)
def test_times_have_two_units(seconds: float, text: str) -> None:
    assert units.time_text(seconds) == text
