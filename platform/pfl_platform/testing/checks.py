"""The checks of the contract kit, one function each."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from pfl_platform.adapters.surfaces import Tensors
from pfl_platform.errors import UserError
from pfl_platform.federation.records import progress_of
from pfl_platform.federation.rounds import context, personal
from pfl_platform.federation.setup import backbone_options, build
from pfl_platform.store.memory import MemoryStore
from pfl_platform.store.run_folder import RunFolder
from pfl_platform.testing.bench import Bench
from pfl_platform.testing.kills import cache_of_its_own, die_at, spread
from pfl_platform.testing.reference import reference


def states(out: Path) -> dict[str, dict[str, Tensor]]:
    """Every client's final state."""
    folder = RunFolder.open(out)
    last = folder.last_round()
    assert last is not None
    return {client: folder.store.get(address) for client, address in last["states"].items()}


def same(first: Mapping[str, Tensors], second: Mapping[str, Tensors], tolerance: float = 0.0) -> str | None:
    """What differs between two sets of states, or None."""
    for client, tensors in first.items():
        for key, value in tensors.items():
            other = second[client][key]
            if tolerance == 0.0:
                if not torch.equal(value, other):
                    return f"{client}: {key} differs"
            elif not torch.allclose(value, other, rtol=tolerance, atol=tolerance):
                return f"{client}: {key} differs by {(value - other).abs().max():.2e}"
    return None


def unknown_option_is_refused(bench: Bench) -> None:
    """A mistyped option of objective or aggregator is a `UserError`, not a silent default."""
    for section in ("objective", "aggregator"):
        try:
            build(bench.config(**{f"{section}.options.no_such_option": 1}), bench.manager, bench.benchmark())
        except UserError:
            continue
        raise AssertionError(f"the {section} took the option 'no_such_option' without a word")


def seed_repeats_the_run(bench: Bench) -> None:
    """The same seed gives the same adapters bit for bit, whatever the global generators hold; another seed gives
    others."""
    plain = reference(bench)
    assert not plain.disturbed, "a run changed torch's global generator"
    first = states(plain.out)
    torch.rand(7)  # moves the global generator, which must not matter
    difference = same(first, states(bench.run()))
    assert difference is None, f"the same seed gave another run: {difference}"
    assert same(first, states(bench.run(seed=1))) is not None, "another seed gave the same run"


def client_order_changes_nothing(bench: Bench) -> None:
    """Clients in reverse order end with the same adapters, up to rounding of sums."""
    difference = same(states(reference(bench).out), states(bench.run(reverse=True)), 1e-4)
    assert difference is None, f"the order of clients matters: {difference}"


def one_client_suffices(bench: Bench) -> None:
    """A federation of one client, and rounds with one of three clients, work."""
    assert states(bench.run(clients=1)), "no state came out"
    config = bench.config()
    needs = [component.needs for component in build(config, bench.manager, bench.benchmark()).parts.components]
    if not any(item.full_cohort for item in needs):
        assert len(states(bench.run(cohort=1))) == 3, "clients got lost under partial participation"


def training_learns(bench: Bench) -> None:
    """Params change in every round, and stay finite."""
    folder = reference(bench).folder
    first, *_ = folder.rounds()
    start = {client: folder.store.get(address) for client, address in first["states"].items()}
    end = states(reference(bench).out)
    for client, tensors in end.items():
        assert all(bool(value.isfinite().all()) for value in tensors.values() if value.is_floating_point()), client
        changed = [key for key in tensors if key in start[client] and not torch.equal(tensors[key], start[client][key])]
        assert changed, f"nothing changed at {client} between the rounds"


def only_declared_keys_leave(bench: Bench) -> None:
    """Messages hold declared keys only, and replies only what the objective takes in."""
    parts = build(bench.config(), bench.manager, bench.benchmark()).parts
    folder = reference(bench).folder
    for turn in reference(bench).turns:
        task, outcome, inbox = turn.task, turn.outcome, turn.inbox
        if task.stage != "round":
            continue
        sent = folder.store.get(outcome.sent) if outcome.sent else {}
        for key in sent:
            assert any(key in share.keys for share in parts.up), f"{task.actor} sent '{key}', which is private"
        for key in inbox:
            assert any(key in share.keys for share in parts.objective.down), f"{task.actor} was sent '{key}' undeclared"
        assert outcome.cost.up_payload == sum(value.numel() * value.element_size() for value in sent.values())
        for way, booked in (("up", outcome.cost.up_wire), ("down", outcome.cost.down_wire)):
            told = outcome.messages.get(way)
            by_tensor = json.loads(folder.store.get_text(told)) if told else {}
            assert sum(by_tensor.values()) == booked, f"bytes {way} of {task.actor} by tensor do not add up"
            assert {*sent} <= {*by_tensor} or way == "down", f"a tensor of {task.actor} is not in its bytes"


def shared_params_mean_the_same(bench: Bench) -> None:
    """What may be combined over all clients has the same shape at all of them; adapters come down in float32."""
    setup = build(bench.config(), bench.manager, bench.benchmark())
    folder = reference(bench).folder
    everybody = [share.keys for share in setup.parts.up if share.scope == "all"]
    slots = {slot.name for slot in setup.parts.objective.slots}
    shapes: dict[str, torch.Size] = {}
    for turn in reference(bench).turns:
        sent = folder.store.get(turn.outcome.sent) if turn.outcome.sent else {}
        for key, value in sent.items():
            if any(key in keys for keys in everybody):
                assert shapes.setdefault(key, value.shape) == value.shape, f"'{key}' has different shapes at clients"
        for key, value in turn.inbox.items():
            if key.partition("/")[0] not in slots:
                continue  # a message that is no adapter comes as it was declared
            assert not value.is_floating_point() or value.dtype == torch.float32, f"'{key}' came down as {value.dtype}"


def phases_add_up_to_the_budget(bench: Bench) -> None:
    """Phases on a client's own data take each batch of a round's local steps, all of them equally often: once, or once
    for each model that a client trains apart."""
    for steps in (2, 5):
        setup = build(bench.config(local_steps=steps), bench.manager, bench.benchmark())
        fed = setup.federation(MemoryStore())
        for client in fed.clients:
            for round_index in range(fed.config.rounds):
                ctx = context(fed, client, round_index)
                own = [phase for phase in setup.parts.objective.phases(ctx) if phase.data is ctx.source]
                taken = Counter(phase.first + index for phase in own for index in range(phase.amount))
                where = f"{client.client_id}, round {round_index}, {steps} steps: {dict(taken)}"
                assert not own or set(taken) == set(range(steps)), (
                    f"batches are left out, or too many taken, at {where}"
                )
                assert len(set(taken.values())) <= 1, f"some batches are taken more often than others at {where}"


def killed_runs_go_on(bench: Bench) -> None:
    """A run that dies in preparation, training, evaluation or between them ends, resumed, like one that did not."""
    whole = reference(bench).out
    straight = states(whole)
    for number, moment in enumerate(spread(reference(bench).moments, 3 * bench.rounds)):
        out = bench.folder / f"killed-{number}"
        shutil.rmtree(out, ignore_errors=True)
        with cache_of_its_own(bench.folder / f"cache-{number}"):
            die_at(bench, out, moment)
            bench.resume(out)
        difference = same(straight, states(out))
        assert difference is None, f"killed {moment}: {difference}"
        for name in ("predictions.jsonl",):
            assert (out / name).read_bytes() == (whole / name).read_bytes(), f"killed {moment}: {name} differs"


def plain_peft_loads_the_personal_adapter(bench: Bench) -> None:
    """What is written for each client loads with peft and gives the logits of the personal model."""
    from peft import PeftModel

    setup = build(bench.config(), bench.manager, bench.benchmark())
    folder = reference(bench).folder
    fed, worker = setup.federation(folder.store), setup.worker(folder.store)
    prepared = folder.read_prepare() or {}
    last = folder.last_round()
    assert last is not None
    for client in last["states"]:
        adapter = folder.adapter_folder(client)
        if not (adapter / "adapter_model.safetensors").exists():
            continue  # the mix depends on the input
        name = fed.backbone_of[client]
        host = worker.host(name)
        host.load_frozen(prepared["frozen"].get(name), folder.store.get)
        host.load(personal(fed, setup.parts, progress_of(last), client))
        batch = host.backbone.codec.encode(bench.benchmark().clients[0].tasks[0].test[:2])
        with torch.no_grad(), host.mixing(setup.parts.recipe().passes[0], batch.inputs["attention_mask"]):
            expected = host.backbone.model(**batch.inputs).logits
        plain = bench.manager.make("backbone", name, backbone_options(setup.config))
        model = PeftModel.from_pretrained(plain.model, str(adapter)).eval()
        with torch.no_grad():
            found = model(**batch.inputs).logits
        assert torch.allclose(expected, found, atol=1e-4), f"{client}: {(expected - found).abs().max():.2e}"


CHECKS: Sequence[Callable[[Bench], None]] = (
    unknown_option_is_refused,
    seed_repeats_the_run,
    client_order_changes_nothing,
    one_client_suffices,
    training_learns,
    only_declared_keys_leave,
    shared_params_mean_the_same,
    phases_add_up_to_the_budget,
    killed_runs_go_on,
    plain_peft_loads_the_personal_adapter,
)


def run_checks(bench: Bench, say: Callable[[str], None] = print) -> bool:
    """Runs all checks and says one line for each; True when all hold."""
    good = True
    for check in CHECKS:
        sentence = (check.__doc__ or "").splitlines()[0]
        try:
            check(bench)
        except AssertionError as error:
            good = False
            say(f"FAILED {check.__name__}: {error}")
        else:
            say(f"ok     {check.__name__}: {sentence}")
    return good
