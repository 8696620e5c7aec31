"""`show RUN --messages`: bytes up and down by tensor."""

from __future__ import annotations

from pathlib import Path

from pfl_platform.cli.output import console, print_json, print_rows
from pfl_platform.errors import UserError, nearest


def show_messages(folder: Path, client: str | None, number: int | None, as_json: bool) -> None:
    """Prints what travelled in the finished rounds of a run: of all clients and rounds together, or of one; as JSON
    by client, direction, round and tensor."""
    from pfl_platform.report.messages import by_tensor, messages, shown
    from pfl_platform.store.run_folder import RunFolder

    if not (folder / "run.json").is_file():
        raise UserError(f"The folder {folder} holds no run: it has no run.json.")
    run = RunFolder(folder)
    records = run.rounds()
    clients = list(dict.fromkeys(name for record in records for name in record["clients"]))
    if client is not None and client not in clients:
        raise UserError(f"No client of this run is called '{client}'." + nearest(client, clients))
    if number is not None and not 1 <= number <= len(records):
        raise UserError(f"--round {number} is not there; the run has finished {len(records)} rounds.")
    found = messages(records, run.store.get_text, client, number)
    if as_json:
        print_json(found)
        return
    rows = shown(by_tensor(found))
    whose = f"client '{client}'" if client is not None else f"all {len(clients)} clients"
    when = f"round {number}" if number is not None else f"{len(records)} rounds"
    if len(rows) == 1:
        console().print(f"Nothing travelled: {whose}, {when}.")
        return
    console().print(f"Serialised bytes by tensor: {whose}, {when}.")
    print_rows(rows, list(rows[0]))
    console().print("A tensor's bytes: its values and its line in the header. Envelope: what is around them.")
