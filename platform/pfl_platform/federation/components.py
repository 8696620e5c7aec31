"""The components that plugins make, and what they see of a federation.

Compose, do not subclass: a class here is abstract or final. Components keep no state between calls; client state and
server state come in as arguments and go out as results.
"""

from __future__ import annotations

import hashlib
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from pfl_platform.adapters.surfaces import AdapterType, Keys, Mix, MixFactory, Site, Slot, Tensors
from pfl_platform.backbones import Backbone
from pfl_platform.data import Benchmark, ClientData, Sample, TaskData
from pfl_platform.errors import UserError, nearest
from pfl_platform.evaluation.surfaces import InferenceRecipe
from pfl_platform.federation.tasks import Address, Program, Share, Store
from pfl_platform.federation.together import Alone, Together
from pfl_platform.training.surfaces import After, Optim, Phase, Source, Statistic, Step

if TYPE_CHECKING:
    from pfl_platform.config import RunConfig
    from pfl_platform.federation.merging import Merger


@dataclass(frozen=True)
class Needs:
    """What a component requires; checked before round 0.

    consumes: slot names that updates must bring (for an aggregator), "*" for any at all. replies: slot names that
    its replies hold, "*" for those that came in. adapters: adapter types that it works with (empty: any). modality:
    "vision-language" or "text" when only one works. full_cohort: every client in every round. equal: what must be
    equal at clients whose params an aggregator combines; "adapter": its signature (rank ...). Empty for an aggregator
    that can combine adapters of different shapes. continues: only backbones whose answers go on from the question, in
    one row, will do; no classifiers and no encoder-decoders. returns: whatever of an adapter trains at a client must
    come down again, because the server adds what it has merged to the backbone, and what stays would count twice.
    combines: what an aggregator makes one of: params under the same key, such as A with A and B with B; "deltas", the
    products of whole adapters; or "nothing" that clients train. own_keys: at every client a key means something else
    (the rows of A are other directions), so that no aggregator that combines keys will do.
    """

    consumes: tuple[str, ...] = ()
    replies: tuple[str, ...] = ()
    adapters: tuple[str, ...] = ()
    modality: str | None = None
    full_cohort: bool = False
    equal: tuple[str, ...] = ("adapter",)
    continues: bool = False
    returns: bool = False
    combines: Literal["keys", "deltas", "nothing"] = "keys"
    own_keys: bool = False


@dataclass
class Federation:
    """What `prepare`, aggregators and personalizers see. `frozen` holds, per host, the address of the tensors that its
    clients share; `prepare` may replace them. `prepared` holds what an objective's `prepare` has made for single
    clients, until their first states are there.

    A host is a backbone with slots. It has the backbone's name; clients whose adapter has options of its own get one
    under another name, with the same frozen weights.
    """

    config: RunConfig
    benchmark: Benchmark
    adapter: AdapterType
    backbone_of: Mapping[str, str]  # client id -> backbone name
    store: Store
    load: Callable[[str], Backbone]  # by the name of a backbone or host; loads once per process
    public: Callable[[], Sequence[Sample]]  # the public set that the run names, disjoint from all clients' data
    frozen: dict[str, Address] = field(default_factory=dict)
    prepared: dict[str, Address] = field(default_factory=dict)  # client id -> tensors, for `Objective.initial`
    own_hosts: Mapping[str, str] = field(default_factory=dict)  # client id -> host, where it is not its backbone's
    own_adapters: Mapping[str, AdapterType] = field(default_factory=dict)  # client id -> adapter with its own options
    together: Together = field(default_factory=Alone)  # the processes that carry out the run

    def host_of(self, client_id: str) -> str:
        """The name under which a client's backbone is loaded, with slots of the shape that its adapter has."""
        return self.own_hosts.get(client_id, self.backbone_of[client_id])

    def adapter_of(self, client_id: str) -> AdapterType:
        return self.own_adapters.get(client_id, self.adapter)

    def unequal(self, client_ids: Iterable[str]) -> str | None:
        """What differs between the adapters of some clients, as a clause that names the first two; None when nothing
        does."""
        first, *rest = client_ids
        ours = self.adapter_of(first).signature()
        for other in rest:
            theirs = self.adapter_of(other).signature()
            if differing := [key for key in sorted({*ours, *theirs}) if ours.get(key) != theirs.get(key)]:
                values = [", ".join(f"{key}={part.get(key)}" for key in differing) for part in (ours, theirs)]
                return f"that of client '{first}' has {values[0]} and that of client '{other}' {values[1]}"
        return None

    def check_names(self, option: str, names: Iterable[str]) -> None:
        """Refuses an option that is given per client and names one that is not there."""
        known = [client.client_id for client in self.clients]
        for name in names:
            if name not in known:
                raise UserError(f"{option} names '{name}', which is no client." + nearest(name, known))

    @property
    def clients(self) -> tuple[ClientData, ...]:
        return self.benchmark.clients

    @property
    def seed(self) -> int:
        return self.config.seed

    @property
    def salt(self) -> dict[str, str]:
        """Names all settings; part of every task's hash, so that outcomes of other settings are never taken for
        these."""
        return {"config": hashlib.sha256(self.config.model_dump_json().encode()).hexdigest()}

    @property
    def backbones(self) -> tuple[str, ...]:
        """Names in use, smallest first (by params, then by name)."""
        names = sorted(set(self.backbone_of.values()))
        return tuple(sorted(names, key=lambda name: (self.load(name).card.num_params, name)))


@dataclass(frozen=True)
class ClientContext:
    """One client's turn in one round, as an objective sees it. `source` is the client's stream through its memory;
    `optim` holds the run's training options; `first_step` counts local steps of earlier rounds; `tasks` are those
    that have begun by the end of the round: statistics that look past the stream must not see the others."""

    fed: Federation
    client: ClientData
    round_index: int
    local_steps: int
    source: Source
    optim: Optim
    tasks: tuple[TaskData, ...]

    @property
    def backbone(self) -> str:
        """The name under which the client's backbone is loaded; see `Federation.host_of`."""
        return self.fed.host_of(self.client.client_id)

    @property
    def first_step(self) -> int:
        return self.round_index * self.local_steps

    @property
    def adapter(self) -> AdapterType:
        """The client's adapter type, with its own options."""
        return self.fed.adapter_of(self.client.client_id)

    @property
    def sites(self) -> tuple[Site, ...]:
        """The maps of the client's backbone that are adapted."""
        return self.adapter.sites(self.fed.load(self.backbone))

    def start(self, *slots: str, seed: int | None = None) -> dict[str, Tensor]:
        """Params of slots before any training: the same numbers in each of them, and at every client whose backbone
        and adapter are the same. Drawn from the run's seed, or from another."""
        backbone, seed = self.fed.load(self.backbone), self.fed.seed if seed is None else seed
        return {key: value for slot in slots for key, value in self.adapter.initial(backbone, slot, seed).items()}

    def afresh(self, *slots: str) -> Optim:
        """The run's optimiser for slots that a download replaces: their moments do not survive the round; those of a
        task head beside them do."""
        return replace(self.optim, reset=Keys(*(f"{slot}/*" for slot in slots)))

    def phase(
        self, *steps: Step, name: str = "local", amount: int | None = None, first: int = 0, after: After | None = None
    ) -> Phase:
        """A phase on the client's own stream: of the round's local steps, all or `amount` of them, `first` on."""
        amount = self.local_steps if amount is None else amount
        training = self.fed.config.training
        return Phase(name, steps, amount, self.source, training.micro_batch, after, first, training.by_length)


class Component:
    """Shared by objectives, aggregators and personalizers."""

    @property
    def needs(self) -> Needs:
        return Needs()

    def check(self, fed: Federation) -> None:
        """Raises `UserError` for whatever can be known to be wrong before anything is written."""

    def prepare(self, fed: Federation) -> Program[Mapping[str, Address]]:
        """Tasks before round 0. Returns replacements for `fed.frozen` (host -> address), usually none."""
        yield from ()
        return {}


class Objective(Component):
    """What a client minimises."""

    @property
    @abstractmethod
    def slots(self) -> tuple[Slot, ...]: ...

    @property
    def mixes(self) -> Mapping[str, MixFactory]:
        """Learned mixes by name."""
        return {}

    @property
    @abstractmethod
    def up(self) -> tuple[Share, ...]:
        """Keys that go up."""

    @property
    def down(self) -> tuple[Share, ...]:
        """Keys that come down; those that go up when nothing else is said."""
        return self.up

    def initial(self, ctx: ClientContext) -> dict[str, Tensor]:
        """The client's state before its first round: every slot as the adapter type starts it."""
        return ctx.start(*(slot.name for slot in self.slots))

    @abstractmethod
    def phases(self, ctx: ClientContext) -> tuple[Phase, ...]: ...

    def statistics(self, ctx: ClientContext) -> tuple[Statistic, ...]:
        return ()

    def receive(self, state: dict[str, Tensor], reply: Tensors) -> Mapping[str, Tensor]:
        """State after a reply has arrived. Runs on the worker, before training; replies are under the keys of
        `down`."""
        return {**state, **reply}

    def replied(self, state: dict[str, Tensor], reply: Tensors) -> Mapping[str, Tensor]:
        """The state that is evaluated when a recipe asks for the model of the reply (`InferenceRecipe.when`). Of an
        objective that keeps its own params in `receive` it must hold the reply's instead."""
        return self.receive(state, reply)

    def uploads(self, ctx: ClientContext) -> bool:
        """Whether what `up` declares leaves the client in this round. Of an exchange that has ended nothing does."""
        return True

    def downloads(self, ctx: ClientContext) -> bool:
        """Whether the client takes in the server's reply in this round."""
        return True

    def send(self, tensors: Tensors) -> Mapping[str, Tensor]:
        """What leaves the client of the declared keys, in the form in which it travels. Runs on the worker, after
        training and before postprocessors; it may shorten tensors or leave some out, and adds no key."""
        return tensors

    @property
    @abstractmethod
    def mix(self) -> Mix:
        """The mix of the personal model; what is evaluated and exported when no personalizer says otherwise."""

    def others(self, fed: Federation) -> tuple[str, ...]:
        """Further backbones that losses and statistics run."""
        return ()


@dataclass(frozen=True)
class Update:
    """What one client sent in a round; tensors are read from the store when asked for."""

    client_id: str
    backbone: str
    num_examples: int
    address: Address
    store: Store

    def tensors(self, keys: Keys | None = None) -> dict[str, Tensor]:
        return self.store.get(self.address, keys)

    def names(self) -> tuple[str, ...]:
        """All keys that came, sorted."""
        return self.store.names(self.address)


@dataclass(frozen=True)
class Updates:
    """The updates of a round in a fixed client order; may be walked any number of times."""

    items: tuple[Update, ...]

    def __iter__(self) -> Iterator[Update]:
        return iter(self.items)

    def __len__(self) -> int:
        return len(self.items)


@dataclass(frozen=True)
class ServerState:
    """Server state between rounds: addresses of tensors and JSON. `report` is shown with the round, never read back;
    a server that weighs clients says in `report["weights"]` how much: client that gets -> contributor -> weight."""

    tensors: Mapping[str, Address] = field(default_factory=dict)
    meta: Mapping[str, Any] = field(default_factory=dict)
    report: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Base:
    """A delta that all clients of a host have added to their frozen weights. address: of dense float32 tensors
    `base/site/W` (d_out, d_in). sent: bytes that a client has received to get there, from the bare backbone on."""

    address: Address
    sent: int = 0


class Aggregator(Component):
    """Updates to server state, server state to one reply per client."""

    @property
    def asks(self) -> tuple[Share, ...]:
        """Keys that it wants beside what the objective sends: what its own `statistics` measure."""
        return ()

    def statistics(self, ctx: ClientContext, objective: Objective) -> tuple[Statistic, ...]:
        """What clients measure for it (Gram matrices, squared gradients ...), beside the objective's own."""
        return ()

    def work(self, clients: int, sent: Mapping[str, int]) -> float:
        """FLOPs of the server's own sums in a round with so many clients, for plans; `sent`: key -> how many values one
        client sends. Tasks that it yields are no part of this."""
        return 0.0

    @property
    def merger(self) -> Merger | None:
        """Its rule for combining adapters, when it has one that needs no federation around it."""
        return None

    def base(self, fed: Federation, state: ServerState, host: str) -> Base | None:
        """The delta that is always on in a host's backbone, from now on; None while there is none."""
        return None

    def others(self, fed: Federation) -> tuple[str, ...]:
        """Further backbones on which the server has models of its own."""
        return ()

    def runs(self, fed: Federation) -> tuple[str, ...]:
        """Further backbones that its statistics run at clients."""
        return ()

    def init(self, fed: Federation) -> ServerState:
        return ServerState()

    @abstractmethod
    def absorb(self, fed: Federation, state: ServerState, updates: Updates, round_index: int) -> Program[ServerState]:
        """Takes in a round's updates. May yield server tasks."""

    @abstractmethod
    def reply(self, fed: Federation, state: ServerState, client_id: str) -> dict[str, Tensor]:
        """What the server sends to one client when it dispatches the client's next task; {} when it has nothing yet."""


class Personalizer(Component):
    """Client state to the model that is evaluated."""

    def statistics(self, ctx: ClientContext, objective: Objective) -> tuple[Statistic, ...]:
        """What is measured at a client before each of its evaluations, on the state that is evaluated: after training,
        or with the reply taken in (see `InferenceRecipe.when`). What they keep is in the state that a recipe sees."""
        return ()

    @abstractmethod
    def recipe(self, objective: Objective) -> InferenceRecipe: ...


class Postprocessor(Component):
    """Changes an update before it is sent (clipping, noise)."""

    @abstractmethod
    def apply(self, update: Tensors, received: Tensors, rng: Callable[..., torch.Generator]) -> Tensors: ...


def combine(tensors: Iterable[Tensors], weights: Sequence[float]) -> dict[str, Tensor]:
    """`sum_i weights[i] * tensors[i]` per key; float64 inside, the input's dtype out.

    `tensors` may be lazy: one item is held at a time. All items have the keys of the first.

    >>> combine([{"a": torch.tensor([1.0])}, {"a": torch.tensor([3.0])}], [0.25, 0.75])
    {'a': tensor([2.5000])}
    """
    sums: dict[str, Tensor] = {}
    dtypes: dict[str, torch.dtype] = {}
    for weight, item in zip(weights, tensors, strict=True):
        if not sums:
            dtypes = {key: value.dtype for key, value in item.items()}
            sums = {key: torch.zeros(value.shape, dtype=torch.float64) for key, value in item.items()}
        for key, total in sums.items():
            if item[key].shape != total.shape:
                raise UserError(
                    f"'{key}' has shape {tuple(total.shape)} at one client and {tuple(item[key].shape)} at another; "
                    "clients whose params are combined need the same rank."
                )
            total.add_(item[key].to(torch.float64), alpha=float(weight))
    return {key: total.to(dtypes[key]) for key, total in sums.items()}
