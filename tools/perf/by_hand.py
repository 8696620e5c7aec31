"""Methods as one would write them without a platform: peft, torch, a loop over clients, a loop over batches.

Used by `method_rounds.py`. What is here is the whole of a round: clients take the average, train, keep what is theirs,
and the server averages what they send.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import LoraLayer
from torch import Tensor
from torch.nn import functional

from pfl_platform.backbones import Backbone, Encoded
from pfl_platform.training.streams import ClientStream

RATE, SCALE = 2e-3, 2.0


class Adapters:
    """A peft model with LoRAs of several names."""

    def __init__(self, backbone: Backbone, paths: Sequence[str], rank: int, names: Sequence[str]) -> None:
        config = LoraConfig(r=rank, lora_alpha=int(SCALE * rank), target_modules=list(paths))
        self.codec = backbone.codec
        self.model = get_peft_model(backbone.model, config, adapter_name=names[0])
        for name in names[1:]:
            self.model.add_adapter(name, config)
        found = [(path, module) for path, module in self.model.named_modules() if isinstance(module, LoraLayer)]
        self.layers = [module for _, module in found]
        self.paths = [path.removeprefix("base_model.model.") for path, _ in found]
        self.params = {
            name: [factor[name].weight for layer in self.layers for factor in (layer.lora_A, layer.lora_B)]  # type: ignore[index]
            for name in names
        }

    def use(self, weights: Mapping[str, float], train: str = "") -> None:
        """Passes go through these adapters; one of them is trained."""
        for layer in self.layers:
            layer._active_adapter = list(weights)
            for name, weight in weights.items():
                layer.scaling[name] = SCALE * weight
        for name, params in self.params.items():
            for param in params:
                param.requires_grad_(name == train)

    def read(self, name: str) -> list[Tensor]:
        return [param.detach().clone() for param in self.params[name]]

    @torch.no_grad()
    def write(self, name: str, values: Sequence[Tensor]) -> None:
        for param, value in zip(self.params[name], values, strict=True):
            param.copy_(value)


@dataclass
class Client:
    """own: adapter name -> what stays with it. moments: adapter name -> Adam's state."""

    stream: ClientStream
    steps: int
    examples: int
    own: dict[str, list[Tensor]] = field(default_factory=dict)
    moments: dict[str, dict[str, Any]] = field(default_factory=dict)

    def batches(self, adapters: Adapters, steps: range | None = None) -> Iterator[Encoded]:
        opened = self.stream.open({})
        for step in steps or range(self.steps):
            yield adapters.codec.encode(opened.batch(step))


class Stepper:
    """AdamW over one adapter; of a client's own one it goes on where the last round ended."""

    def __init__(self, adapters: Adapters, name: str, client: Client, *, keep: bool) -> None:
        self.params, self.name, self.client, self.keep = adapters.params[name], name, client, keep
        self.adamw = torch.optim.AdamW(self.params, lr=RATE, weight_decay=0.0, fused=True)
        if keep and name in client.moments:
            self.adamw.load_state_dict(client.moments[name])

    def step(self, loss: Tensor) -> float:
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self.params, 1.0)
        self.adamw.step()
        self.adamw.zero_grad(set_to_none=True)
        return loss.item()

    def done(self) -> None:
        if self.keep:
            moments = self.adamw.state_dict()
            moments["state"] = {
                k: {n: v.clone() for n, v in entries.items()} for k, entries in moments["state"].items()
            }
            self.client.moments[self.name] = moments


def answers(adapters: Adapters, encoded: Encoded) -> Tensor:
    """The model's own loss: the mean over answer tokens."""
    loss: Tensor = adapters.model(**encoded.inputs, labels=encoded.labels, use_cache=False).loss
    return loss


def fit(adapters: Adapters, client: Client, name: str, weights: Mapping[str, float], **options: Any) -> None:
    """Trains one adapter in a mix of adapters."""
    steps = options.get("steps")
    adapters.use(weights, name)
    stepper = Stepper(adapters, name, client, keep=options["keep"])
    for encoded in client.batches(adapters, steps):
        stepper.step(answers(adapters, encoded))
    stepper.done()


def sft(adapters: Adapters, client: Client) -> None:
    fit(adapters, client, "local", {"local": 1.0}, keep=True)


def fedit(adapters: Adapters, client: Client) -> None:
    fit(adapters, client, "global", {"global": 1.0}, keep=False)


def potara(adapters: Adapters, client: Client) -> None:
    """FedIT and Local."""
    fedit(adapters, client)
    sft(adapters, client)


def feddpa(adapters: Adapters, client: Client) -> None:
    """FedDPA-T: the local adapter beside the global one, then the global one alone."""
    half = client.steps // 2
    fit(adapters, client, "local", {"local": 0.5, "global": 0.5}, keep=True, steps=range(half))
    fit(adapters, client, "global", {"global": 1.0}, keep=False, steps=range(half, client.steps))


def ditto(adapters: Adapters, client: Client, lam: float = 0.1) -> None:
    anchors = adapters.read("global")
    steppers = {name: Stepper(adapters, name, client, keep=name == "local") for name in ("global", "local")}
    for encoded in client.batches(adapters):
        for name, stepper in steppers.items():
            adapters.use({name: 1.0}, name)
            loss = answers(adapters, encoded)
            if name == "local":
                pull = [(own - anchor).square().sum() for own, anchor in zip(stepper.params, anchors, strict=True)]
                loss = loss + 0.5 * lam * torch.stack(pull).sum()
            stepper.step(loss)
    steppers["local"].done()


def feddat(adapters: Adapters, client: Client, temperature: float = 3.0) -> None:
    """The shared adapter and the teacher of local and frozen adapter, each from the answers and from the other."""
    adapters.write("anchor", adapters.read("global"))
    teacher = {"local": 0.5, "anchor": 0.5}
    steppers = {name: Stepper(adapters, name, client, keep=name == "local") for name in ("global", "local")}

    def half(own: Any, other: Tensor, encoded: Encoded) -> Tensor:
        picked = encoded.labels[:, 1:] != -100
        mine = functional.log_softmax(own.logits[:, :-1][picked] / temperature, dim=-1)
        theirs = functional.log_softmax(other[:, :-1][picked] / temperature, dim=-1)
        distance = functional.kl_div(theirs, mine, reduction="batchmean", log_target=True)  # KL(mine || theirs)
        loss: Tensor = 0.5 * (own.loss + temperature**2 * distance)
        return loss

    for encoded in client.batches(adapters):
        with torch.no_grad():
            adapters.use(teacher)
            told = adapters.model(**encoded.inputs, use_cache=False).logits
        adapters.use({"global": 1.0}, "global")
        own = adapters.model(**encoded.inputs, labels=encoded.labels, use_cache=False)
        shown = own.logits.detach()
        steppers["global"].step(half(own, told, encoded))
        adapters.use(teacher, "local")
        own = adapters.model(**encoded.inputs, labels=encoded.labels, use_cache=False)
        steppers["local"].step(half(own, shown, encoded))
    steppers["local"].done()


@dataclass(frozen=True)
class Method:
    """names: its adapters. train: a client's turn. uniform: whether clients weigh the same in the average."""

    names: tuple[str, ...]
    train: Callable[[Adapters, Client], None]
    uniform: bool = False


METHODS = {
    "sft": Method(("local",), sft),
    "fedit": Method(("global",), fedit),
    "ditto": Method(("global", "local"), ditto),
    "feddpa": Method(("global", "local"), feddpa, uniform=True),
    "feddat": Method(("global", "local", "anchor"), feddat, uniform=True),
    "potara": Method(("global", "local"), potara),
}


def one_round(method: Method, adapters: Adapters, clients: Sequence[Client], shared: list[Tensor]) -> list[Tensor]:
    """Returns the new average; a method without a global adapter has none."""
    sent = []
    for client in clients:
        if shared:
            adapters.write("global", shared)
        for name, values in client.own.items():
            adapters.write(name, values)
        method.train(adapters, client)
        client.own = {name: adapters.read(name) for name in client.own}
        if shared:
            sent.append((1 if method.uniform else client.examples, adapters.read("global")))
    whole = sum(weight for weight, _ in sent)
    return [
        torch.stack([weight / whole * values[place] for weight, values in sent]).sum(0) for place in range(len(shared))
    ]
