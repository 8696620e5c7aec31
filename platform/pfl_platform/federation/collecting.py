"""What the clients of a round have sent, as the server takes it in."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from pfl_platform.data import ClientData
from pfl_platform.engines.worker import undeclared
from pfl_platform.errors import UserError
from pfl_platform.federation import heads
from pfl_platform.federation.components import Federation, Update, Updates
from pfl_platform.federation.tasks import Outcome

if TYPE_CHECKING:
    from pfl_platform.federation.rounds import Parts


def collect(fed: Federation, parts: Parts, cohort: list[ClientData], outcomes: Mapping[str, Outcome]) -> Updates:
    """The round's updates in the benchmark's order; a message with an undeclared key is refused."""
    items = []
    for client in cohort:
        outcome = outcomes[client.client_id]
        if outcome.sent is None:
            continue
        declared = parts.up + heads.shares(fed, client.client_id, parts.objective.slots)
        strangers = undeclared(list(fed.store.get(outcome.sent)), declared) if parts.postprocessors else []
        if strangers:
            raise UserError(f"The update of {client.client_id} holds '{strangers[0]}', which may not leave the client.")
        backbone = fed.backbone_of[client.client_id]
        items.append(Update(client.client_id, backbone, outcome.num_examples, outcome.sent, fed.store))
    return Updates(tuple(items))
