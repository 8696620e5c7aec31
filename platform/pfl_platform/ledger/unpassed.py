"""Statistics that send something of every sample, shown all of them at the price of two passes.

Such a message is as long as its data, and a server that reads it counts on that. So a rehearsal shows all batches; but
what a statistic makes of logits depends, in shape, on labels alone, so that most of them need no pass.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from pfl_platform.adapters.host import Host
from pfl_platform.backbones import Backbone, Encoded
from pfl_platform.data import Sample
from pfl_platform.distillation.vocabularies import width
from pfl_platform.federation.rows import BLANK
from pfl_platform.ledger.hollow import NOWHERE
from pfl_platform.training.surfaces import Output, Source, Statistic, View
from pfl_platform.training.view import BatchView, Call

if TYPE_CHECKING:
    from pfl_platform.ledger.stage import Hosts


def plain(backbone: Backbone, samples: Sequence[Sample]) -> Encoded:
    """A batch as a backbone reads it, whose pictures stay closed."""
    if backbone.sight is not None:
        return backbone.sight.encode(samples)
    return backbone.codec.encode([replace(one, pictures=(BLANK,) * len(one.pictures)) for one in samples])


def shown_all(item: Statistic, hosts: Hosts, name: str) -> Statistic:
    """A statistic that passes no batch but those it is given, and sends as if it had seen all of its data. name: of the
    host that it looks at."""
    assert item.data is not None
    found = copy(item)
    whole: list[Any] = []
    source, amount = item.data, item.amount

    def add(acc: Any, view: View) -> Any:
        if not getattr(view, "dry", False) and not whole:  # held while the passes are made, as in a run
            with hosts.account.making(NOWHERE):
                whole.append(_without_passes(item, source, amount, hosts.host, name, view))
            for tensor in tree_leaves(whole):
                if isinstance(tensor, Tensor):
                    hosts.account.move(tensor, "state")
        return item.add(acc, view)

    def finish(acc: Any, *rest: Any) -> Any:
        return item.finish(whole.pop() if whole else acc, *rest)

    for method in (add, finish):
        setattr(found, method.__name__, method)
    return found


def _without_passes(
    item: Statistic, source: Source, amount: int, hosts: Callable[[str], Host], name: str, view: View
) -> Any:
    opened, acc = source.open({}), None
    for index in range(amount):
        batch = BatchView(hosts, name, opened.batch(index), step=index, rng=_none, refs=view.refs)

        def answer(call: Call, batch: BatchView = batch) -> Output:
            host = hosts(call.backbone)
            encoded = plain(host.backbone, batch.samples)
            places = (len(encoded.answers),) if host.picks and not call.whole else encoded.labels.shape
            return batch.output(torch.empty((*places, width(host.backbone))), encoded)

        batch.relay = answer
        acc = item.add(acc, batch)
    return acc


def _none(*_: Any) -> torch.Generator:
    raise AssertionError("a pass that is not made draws nothing")
