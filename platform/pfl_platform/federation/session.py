"""A run from start to end: set up, prepare, rounds, results; and the same from where it was left.

The federation itself is in `rounds`; here are the things around it: the run folder, the numeric options that are
pinned, observers, and what is written when.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from pfl_platform.adapters.export import save_personal
from pfl_platform.config import Choice, RunConfig
from pfl_platform.data import Benchmark, Noting
from pfl_platform.engines.carrier import Carrier, InProcess
from pfl_platform.engines.worker import Worker
from pfl_platform.errors import RunStopped, UserError
from pfl_platform.evaluation.matrix import results as make_results
from pfl_platform.federation import tuning
from pfl_platform.federation.cohorts import select
from pfl_platform.federation.components import Federation, ServerState
from pfl_platform.federation.observers import Observer, RunInfo
from pfl_platform.federation.records import predictions, progress_of, round_record
from pfl_platform.federation.rounds import (
    Parts,
    Progress,
    base_of,
    baseline,
    client_task,
    drive,
    one_round,
    personal,
    prepare,
)
from pfl_platform.federation.setup import Setup, build, public_digest
from pfl_platform.federation.starting import digest_of
from pfl_platform.federation.tasks import Engine
from pfl_platform.federation.together import Alone, Together
from pfl_platform.federation.watching import Books, Place
from pfl_platform.ledger.costs import total
from pfl_platform.ledger.profiling import FOLDER, Off, Profile
from pfl_platform.plugins import PluginManager, available
from pfl_platform.settings import COMPONENTS
from pfl_platform.store.memory import MemoryStore
from pfl_platform.store.pins import pins_of
from pfl_platform.store.run_folder import RunFolder, require
from pfl_platform.training.relief import parts_of
from pfl_platform.tuning import candidates, with_values

WATCHERS = ("progress", "tensorboard", "events")
"""Observers of every run; a run's configuration may name more."""


def run(
    config: RunConfig,
    out: Path,
    *,
    quiet: bool = False,
    plugins: PluginManager | None = None,
    benchmark: Benchmark | None = None,
    carrier: Carrier | None = None,
    profile: bool = False,
) -> dict[str, Any]:
    """Runs a federation into the folder `out`, which must be new or empty. Returns the content of `results.json`.

    benchmark: takes the place of the one that the configuration names (the contract kit's, for example). carrier: what
    carries out the run; this process when nothing is said. profile: see `ledger.profiling`.
    """
    from pfl_platform.ledger.fitting import refuse, refuse_weights  # which rehearses what is run here

    call = Call(plugins or PluginManager(), benchmark, quiet, out, carrier or InProcess(), profile)
    config = pinned(config)
    setup = build(config, call.manager, benchmark, before_loading=lambda names: refuse_weights(config, names))
    tuning.check(setup, call.manager, candidates(config))
    _observers(call, setup.config)  # whatever is wrong with their options shows before anything is written
    call.carrier.check(setup)
    call.together.once(lambda: refuse(setup, call.manager, out))
    about = pins(setup)
    call.together.agree(about)
    return _continue(call, setup, call.carrier.create(out, config, about))


def resume(
    out: Path,
    *,
    quiet: bool = False,
    plugins: PluginManager | None = None,
    benchmark: Benchmark | None = None,
    carrier: Carrier | None = None,
    profile: bool = False,
) -> dict[str, Any]:
    """Goes on with a run that was stopped or killed. A run that has ended is returned as it is."""
    call = Call(plugins or PluginManager(), benchmark, quiet, out, carrier or InProcess(), profile)
    folder = call.carrier.open(out)
    setup = build(folder.config, call.manager, benchmark)
    call.carrier.check(setup)
    about = pins(setup)
    call.together.agree(about)
    changed = call.together.once(lambda: folder.check_pins(about))
    if changed:
        raise UserError(f"The run {out} cannot go on with the same numbers: {' '.join(changed)}")
    return _continue(call, setup, folder)


@dataclass(frozen=True)
class Call:
    """How a run was asked for. told: the folder to name in a sentence that says how to go on."""

    manager: PluginManager
    benchmark: Benchmark | None
    quiet: bool
    told: Path
    carrier: Carrier
    profile: bool = False

    @property
    def together(self) -> Together:
        return self.carrier.together


def pinned(config: RunConfig) -> RunConfig:
    """The configuration with torch's own thread count written down, as it changes the last bits of sums."""
    if config.engine.threads:
        return config
    return config.model_copy(update={"engine": config.engine.model_copy(update={"threads": torch.get_num_threads()})})


def pins(setup: Setup) -> dict[str, Any]:
    """What must not change between a run's start and whoever goes on with it; see `pfl_platform.store.pins`."""
    engine, others = setup.config.engine, setup.parts.others(setup.federation(MemoryStore()))
    # A set of the benchmark's that was not named is in the benchmark's digest.
    named: dict[str, Any] = {}
    if setup.config.public.name is not None:
        named["public"] = public_digest(setup.public())
    if engine.batch_clients != "off":
        named["batch_clients"] = engine.batch_clients
    if setup.config.start:
        named["start"] = digest_of(setup.config.start)
    return pins_of(
        threads=engine.threads,
        benchmark=setup.benchmark.digest(),
        backbones={name: setup.load(name).digest for name in {*setup.backbone_of.values(), *others}},
        packages=packages_of(setup),
        dtype=engine.dtype,
        device=setup.load(next(iter(setup.backbone_of.values()))).device.type,
        **named,
    )


def packages_of(setup: Setup) -> dict[str, str]:
    """The installed packages whose plugins decide the run's numbers, with their versions. Observers only watch."""
    config = setup.config
    choices = [("benchmark", config.benchmark), *((kind, getattr(config, kind)) for kind in COMPONENTS)]
    named = {("method", config.method), *(("backbone", name) for name in setup.backbone_of.values())}
    named |= {(kind, choice.name) for kind, choice in choices if choice is not None}
    named |= {("postprocessor", choice.name) for choice in config.postprocessors}
    named |= {("metric", name) for name in setup.metrics}
    plugins = [plugin for kind, name in named if (plugin := available(kind).get(name)) is not None]
    return {plugin.package: plugin.version for plugin in plugins}


def _continue(call: Call, setup: Setup, folder: RunFolder) -> dict[str, Any]:
    with folder.lock():
        ended: dict[str, Any] | None = call.together.once(folder.read_results)
        if ended is not None:
            return ended
        setup = _settled(call, setup, folder)
        observers = _observers(call, setup.config)
        place = Place()
        with numerics(setup.config):
            try:
                return _Run(call, setup, folder, (*observers, place)).to_end()
            except (UserError, OSError) as error:  # whatever is found only now, a truncated picture for example
                _tell(observers, error)
                where = "" if isinstance(error, RunStopped) else place.sentence()  # a stop of the loop says it itself
                if not call.together.leads:
                    raise RunStopped(f"{error}{where}") from error  # whoever leads says how to go on
                raise RunStopped(
                    f"{error}{where} Finished rounds are kept: go on with `pfl-platform resume {call.told}` "
                    f"(its settings are in {folder.path / 'config.yaml'})."
                ) from error
            except BaseException as error:
                _tell(observers, error)
                raise
            finally:
                for observer in observers:
                    observer.close()


def _settled(call: Call, setup: Setup, folder: RunFolder) -> Setup:
    """The run with what whole runs of its candidates have chosen; the run itself where nothing is tuned, or where the
    last replies will tell (see `_Run`)."""
    config, tried = setup.config, candidates(setup.config)
    if not tried or tuning.on_replies(setup, call.manager, tried) is not None:
        return setup
    found = call.together.once(folder.read_tuning)
    if found is None:
        scored = []
        for number, candidate in enumerate(tried):
            results = _candidate(call, tuning.on_validation(candidate, candidate.config.rounds), folder, number)
            cost = total([results["cost"], results["shared_cost"] or {}])
            scored.append(tuning.Scored(candidate, results["summary"]["self"]["last"]["mean"], cost))
        found = tuning.record(config, scored, "whole runs")
        folder.write_tuning(found)
    return build(with_values(config, found["chosen"]), call.manager, call.benchmark)


def _candidate(call: Call, config: RunConfig, folder: RunFolder, number: int) -> dict[str, Any]:
    """The results of a candidate's own run, begun or gone on with."""
    place = folder.candidate_folder(number)
    setup = build(config, call.manager, call.benchmark)
    begun = call.together.once((place / "run.json").is_file)
    own = call.carrier.open(place) if begun else call.carrier.create(place, config, pins(setup))
    return _continue(call, setup, own)


def _tell(observers: Sequence[Observer], error: BaseException) -> None:
    for observer in observers:
        with suppress(Exception):  # the error itself matters more
            observer.run_failed(error)


def _observers(call: Call, config: RunConfig) -> list[Observer]:
    """Those that tell of the run; of several processes one does."""
    if not call.together.leads:
        return []
    named = {choice.name for choice in config.observers}
    wanted = [Choice(name=name) for name in WATCHERS if name not in named and not (call.quiet and name == "progress")]
    return [call.manager.make("observer", choice.name, choice.options) for choice in (*wanted, *config.observers)]


@contextmanager
def numerics(config: RunConfig) -> Iterator[None]:
    """The pinned thread count and deterministic kernels, put back afterwards."""
    threads, deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    torch.set_num_threads(config.engine.threads)
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(deterministic)


_SERVER: Mapping[str, Any] = {"tensors": dict, "meta": dict}
PREPARED: Mapping[str, Any] = {"frozen": dict, "states": dict, "server": _SERVER}
RECORD: Mapping[str, Any] = {"server": _SERVER, "clients": dict}
"""What going on reads from `prepare.json` and from the files of rounds."""


@dataclass
class _Run:
    """One process's part of a run."""

    call: Call
    setup: Setup
    folder: RunFolder
    observers: Sequence[Observer]
    books: Books = field(default_factory=Books)

    def to_end(self) -> dict[str, Any]:
        setup, folder = self.setup, self.folder
        store = self.call.carrier.store(folder)
        fed, parts, config = setup.federation(store, self.call.together), setup.parts, setup.config
        watch = self._watch()
        worker = watch.worker(setup.worker(self.call.carrier.front(store), self.call.carrier.driver(config)))
        engine = watch.engine(self.call.carrier.engine(worker, (*self.observers, self.books)))
        done, last = self.call.together.once(lambda: self._stand(fed))
        worker.place.relief.parts = parts_of([last] if last is not None else [])
        info = RunInfo(
            folder.path,
            config.method,
            setup.benchmark.name,
            [client.client_id for client in fed.clients],
            config.rounds,
            0 if config.local_epochs else config.local_steps,
            done,
            config.local_epochs,
            tuple(setup.benchmark.notes) if isinstance(setup.benchmark, Noting) else (),
        )
        for observer in self.observers:
            observer.run_started(info)
        progress = self._prepared(fed, parts, engine)
        if last is not None:
            progress = progress_of(last)
        for round_index in range(done, config.rounds):
            with watch.round(round_index):
                parts = self._chosen(fed, progress, engine, round_index)
                with watch.part("aggregation"):
                    result = drive(one_round(fed, parts, progress, round_index), engine)
                progress = result.progress
                with watch.part("commit"):
                    record = {**round_record(result), "shared_cost": total(self.books.taken())}
                    folder.commit_round(round_index, record)
                    folder.collect_garbage(rounds=[number - 1 for number in config.keep_rounds])
                for observer in self.observers:
                    observer.round_done(round_index, record["summary"])
        return self._finish(fed, parts, worker, progress)

    def _watch(self) -> Profile | Off:
        if not self.call.profile:
            return Off(self.call.together)
        device = self.setup.load(next(iter(self.setup.backbone_of.values()))).device
        return Profile(device, self.folder.path / FOLDER, self.call.together)

    def _stand(self, fed: Federation) -> tuple[int, dict[str, Any] | None]:
        """How many rounds are finished, and the record of the last one."""
        records = self.folder.rounds()
        for index, record in enumerate(records):
            file = self.folder.path / "rounds" / f"{index:04d}.json"
            require(file, record, {**RECORD, "states": {client.client_id: str for client in fed.clients}})
        return len(records), records[-1] if records else None

    def _chosen(self, fed: Federation, progress: Progress, engine: Engine, round_index: int) -> Parts:
        """The run's components; where replies are tuned, those whose replies to this round's updates score best. The
        clients' turns are cached, so that the round itself does not train again."""
        setup, folder = self.setup, self.folder
        tried = candidates(setup.config)
        choices = tuning.on_replies(setup, self.call.manager, tried) if tried else None
        if choices is None:
            return setup.parts
        found = self.call.together.once(folder.read_tuning)
        if found is None:
            turns = [
                client_task(fed, setup.parts, progress, client, round_index) for client in select(fed, round_index)
            ]
            outcomes = engine.run(turns)
            scored = []
            for candidate, parts in zip(tried, choices, strict=True):
                score, cost = drive(tuning.replies(fed, parts, progress, outcomes, round_index), engine)
                scored.append(tuning.Scored(candidate, score, cost))
            found = tuning.record(setup.config, scored, "replies")
            folder.write_tuning(found)
        chosen = next(k for k, candidate in enumerate(tried) if dict(candidate.values) == found["chosen"])
        self.setup = replace(setup, config=with_values(setup.config, found["chosen"]), parts=choices[chosen])
        return self.setup.parts

    def _prepared(self, fed: Federation, parts: Parts, engine: Engine) -> Progress:
        """Preparation, once: what it left is on disk, so that a resumed run reads it back."""
        known = self.call.together.once(self.folder.read_prepare)
        if known is None:
            progress = drive(prepare(fed, parts), engine)
            start = drive(baseline(fed), engine) if fed.config.evaluation.baseline else {}
            known = {
                "frozen": dict(fed.frozen),
                "states": dict(progress.states),
                "server": {"tensors": dict(progress.server.tensors), "meta": dict(progress.server.meta)},
                "cost": total(self.books.taken()),
                "baseline": start,
            }
            self.folder.write_prepare(known)
        require(self.folder.path / "prepare.json", known, PREPARED)
        fed.frozen.update(known["frozen"])
        return Progress(known["states"], ServerState(known["server"]["tensors"], known["server"]["meta"]))

    def _finish(self, fed: Federation, parts: Parts, worker: Worker, progress: Progress) -> dict[str, Any]:
        """Personal adapters, predictions and results; the presence of `results.json` ends the run."""

        def written() -> dict[str, Any]:
            alone = replace(fed, together=Alone())
            for client in fed.clients:
                self._export(alone, parts, worker, client.client_id, progress)
            rounds = self.folder.rounds()
            self.folder.write_predictions(predictions(fed, rounds[-1]))
            found = make_results(self.folder, self.setup)
            self.folder.write_results(found)
            return found

        found: dict[str, Any] = self.call.together.once(written)
        for observer in self.observers:
            observer.run_done(found)
        return found

    def _export(self, fed: Federation, parts: Parts, worker: Worker, client_id: str, progress: Progress) -> None:
        recipe = parts.recipe()
        if len(recipe.passes) != 1:
            return  # a personal model of several passes has no form as one adapter
        name = fed.host_of(client_id)
        host = worker.host(name)
        host.load_frozen(fed.frozen.get(name), fed.store.get)
        host.load_base(base_of(fed, parts, progress, client_id), fed.store.get)
        model = personal(fed, parts, progress, client_id)
        host.load(model)
        host.lay_base(model)
        with self.folder.exporting(client_id) as target:
            if recipe.rows is not None or not save_personal(host, recipe.passes[0], target):
                (target / "README.md").write_text(
                    "No single adapter: the mix depends on the input, or it is the bare backbone.\n",
                    encoding="utf-8",
                )
