"""All hooks, on one page.

A plugin is a module that implements some of these functions under the decorator `hookimpl` and is announced by an
entry point: the group says the kind, the name is what a user types, the value is the module.

    [project.entry-points."pfl_platform.aggregators"]
    median = "my_package.median"

Each hook is asked once per run, with `name` as the user typed it and `options` as the run's configuration has them.
Every hook is `firstresult`: the implementation that knows the name returns an object, the others return None. Loops
call the objects, never the hooks. Options that a plugin does not know must be errors: validate them with a pydantic
model that forbids extra keys.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import pluggy

if TYPE_CHECKING:
    from pfl_platform.adapters.surfaces import AdapterType
    from pfl_platform.backbones import Backbone
    from pfl_platform.data import Benchmark
    from pfl_platform.evaluation.surfaces import Metric
    from pfl_platform.federation.components import Aggregator, Objective, Personalizer, Postprocessor
    from pfl_platform.federation.observers import Observer
    from pfl_platform.inventory import Inventory

PROJECT = "pfl_platform"
hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)

Options = Mapping[str, Any]


@hookspec(firstresult=True)
def pfl_make_adapter(name: str, options: Options) -> AdapterType | None:
    """A kind of trainable addition to a backbone. Entry points: `pfl_platform.adapters`. Asked before round 0."""


@hookspec(firstresult=True)
def pfl_make_objective(name: str, options: Options) -> Objective | None:
    """What a client minimises, which slots it has, what it sends. Entry points: `pfl_platform.objectives`."""


@hookspec(firstresult=True)
def pfl_make_aggregator(name: str, options: Options) -> Aggregator | None:
    """Updates to server state to one reply per client. Entry points: `pfl_platform.aggregators`."""


@hookspec(firstresult=True)
def pfl_make_personalizer(name: str, options: Options) -> Personalizer | None:
    """Client state to the model that is evaluated. Entry points: `pfl_platform.personalizers`."""


@hookspec(firstresult=True)
def pfl_make_postprocessor(name: str, options: Options) -> Postprocessor | None:
    """Changes an update before it is sent. Entry points: `pfl_platform.postprocessors`."""


@hookspec(firstresult=True)
def pfl_make_benchmark(name: str, options: Options) -> Benchmark | None:
    """Data, partition and metrics. Entry points: `pfl_platform.benchmarks`."""


@hookspec(firstresult=True)
def pfl_check_data(name: str, options: Options) -> Inventory | None:
    """What is there of a benchmark's files, for `data check`. Optional, in the module of a benchmark; it reads what it
    must and raises nothing for what is missing or broken."""


@hookspec(firstresult=True)
def pfl_outline_benchmark(name: str, options: Options) -> Benchmark | None:
    """The same benchmark without its files: clients, tasks, and as many samples as the published files hold, which
    cannot be read (`outlines.counted_task`). For plans. Optional, in the module of a benchmark that reads files."""


@hookspec(firstresult=True)
def pfl_make_backbone(name: str, options: Options) -> Backbone | None:
    """A frozen foundation model, loaded. Entry points: `pfl_platform.backbones`. Asked once per process and
    backbone."""


@hookspec(firstresult=True)
def pfl_make_metric(name: str, options: Options) -> Metric | None:
    """Scores one prediction against the accepted answers. Entry points: `pfl_platform.metrics`."""


@hookspec(firstresult=True)
def pfl_make_observer(name: str, options: Options) -> Observer | None:
    """Watches a run and never changes it. Entry points: `pfl_platform.observers`."""


KINDS: Mapping[str, str] = {
    "method": "pfl_platform.methods",
    "adapter": "pfl_platform.adapters",
    "objective": "pfl_platform.objectives",
    "aggregator": "pfl_platform.aggregators",
    "personalizer": "pfl_platform.personalizers",
    "postprocessor": "pfl_platform.postprocessors",
    "benchmark": "pfl_platform.benchmarks",
    "backbone": "pfl_platform.backbones",
    "metric": "pfl_platform.metrics",
    "observer": "pfl_platform.observers",
}
"""Kind of plugin -> its entry-point group. A method has no hook: its entry point names a package that holds
`default.yaml`, a recipe that names components; the components come through the other groups."""
