"""The model as a class for ``map_batches`` of Ray Data."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import ray
import ray.data

from ..batch.results import ERROR, Outcome, error_column, result_columns, result_fields
from ..batch.shards import Item
from ..batch.stream import Stream
from ..batch.tables import cell_value
from ..errors import InputError
from ..images.paths import path_errors
from ..manifest import read_manifest
from ..plan import decide as planning
from ..runner import Runner
from ..signature import Signature, signature_of
from .cluster import look_at_nodes, node_id
from .pool import Setting, make_pool

_BATCHES = 16
"""Calls of the model in one batch of Ray Data, for each instance: at its end the instances run empty."""
_MOST_ROWS = 1024


class Predictor:
    """Adds the model's results to batches of a dataset; an instance lives in each actor of the pool.

    ``column`` holds encoded images (bytes, or a struct with a field ``bytes``), paths, or arrays; None for a model with
    several inputs, whose columns have the names of the inputs. Arrays of pixels that have the model's own size, and
    floats, are taken as they are; other pixels are images to be resized. Batches may be read-only.

    The columns of ``batch`` follow, without ``column``, then ``error`` and those of the task. A row that cannot be read
    has its ``error``, and null for the rest.
    """

    package_dir: ClassVar[Path]

    def __init__(self, column: str | None = None, top_k: int = 5, settings: dict[str, Setting] | None = None) -> None:
        manifest = read_manifest(self.package_dir)
        own = (settings or {}).get(node_id()) if ray.is_initialized() else None
        if own is None:  # a node that joined later, or no cluster: the plan sees the CPUs of this actor
            plan = planning.decide(manifest, objective="throughput")
            own = Setting(plan.threads, plan.instances, plan.batch_size)
        self._column, self._top_k = column, top_k
        self._runner = Runner(self.package_dir, threads=own.threads, instances=own.instances, batch_size=own.batch_size)
        self._signature = self._runner.signature
        self._stream = Stream(self._runner, top_k)

    @classmethod
    def options(
        cls,
        column: str | None = None,
        *,
        top_k: int = 5,
        threads: int | None = None,
        instances: int | None = None,
        batch_size: int | None = None,
        actors: int | None = None,
    ) -> dict[str, Any]:
        """Return the arguments of ``map_batches``: actors, their CPUs and settings, from the plan of every node.

        ``batch_size`` is that of the model's calls. Connects to the cluster as ``ray.init()`` does where that is not
        done. Raises InputError without the ``column`` that the model needs, HostError where a node cannot run it.
        """
        signature = signature_of(read_manifest(cls.package_dir))
        if (column is None) != _takes_columns(signature):
            names = ", ".join(each.name for each in signature.inputs)
            raise InputError(
                f"this model has several inputs, {names}, read from columns of these names; leave out column"
                if column is not None
                else "which column holds the inputs? Predictor.options(column=...)"
            )
        if not ray.is_initialized():
            ray.init()
        pool = make_pool(look_at_nodes(cls.package_dir), threads=threads, instances=instances, batch_size=batch_size)
        busiest = max(each.instances * each.batch_size for each in pool.settings.values())
        if actors is not None and actors < 1:
            raise InputError(f"actors is {actors}; it starts at 1")
        return {
            "fn_constructor_kwargs": {"column": column, "top_k": top_k, "settings": pool.settings},
            "batch_size": max(1, min(_MOST_ROWS, _BATCHES * busiest)),
            "batch_format": "numpy",
            "zero_copy_batch": True,
            "num_cpus": pool.cpus,
            "compute": ray.data.ActorPoolStrategy(size=min(actors or pool.actors, pool.actors)),
        }

    def __call__(self, batch: dict[str, Any]) -> pa.Table:
        """Return the batch with the model's results. Raises InputError for a column that is not there."""
        wanted = [each.name for each in self._signature.inputs] if self._column is None else [self._column]
        given = [name for name in wanted if name in batch]
        if not given or (self._column is not None and self._column not in batch):
            raise InputError(f"the dataset has no column {', '.join(wanted)}; it has {', '.join(batch)}")
        rest = {name: values for name, values in batch.items() if name not in given}
        fields = [pa.field(ERROR, pa.string()), *result_fields(self._runner.answers.spec, self._signature)]
        if twice := [field.name for field in fields if field.name in rest]:
            raise InputError(f"the dataset has columns of the names of results: {', '.join(twice)}; rename them")
        count = len(batch[given[0]])
        outcomes: list[Outcome] = list(
            self._stream.outcomes(Item(row, _Row(self._signature, self._column, batch, row)) for row in range(count))
        )
        columns = [error_column(outcomes), *result_columns(self._runner.answers.spec, self._signature, outcomes)]
        kept = [pa.array(values.tolist() if values.ndim > 1 else values) for values in rest.values()]
        return pa.Table.from_arrays([*kept, *columns], names=[*rest, *(field.name for field in fields)])


class _Row:
    """Reads one row of a batch."""

    def __init__(self, signature: Signature, column: str | None, batch: dict[str, Any], row: int) -> None:
        self._signature, self._column, self._batch, self._row = signature, column, batch, row

    def __call__(self) -> Any:
        if self._column is not None:
            needed = [each for each in self._signature.inputs if each.default is None] or self._signature.inputs
            return self._value(needed[0], self._batch[self._column][self._row])
        specs = {each.name: each for each in self._signature.inputs if each.name in self._batch}
        return {name: self._value(spec, self._batch[name][self._row]) for name, spec in specs.items()}

    def _value(self, spec: Any, value: Any) -> Any:
        if isinstance(value, str | np.str_):
            path = Path(str(value))
            with path_errors(str(value)):
                return path.read_bytes() if spec.preprocess is not None else cell_value(spec, path.read_bytes())
        return cell_value(spec, value)


def _takes_columns(signature: Signature) -> bool:
    """Return whether a model's inputs come from columns of their names."""
    return len([each for each in signature.inputs if each.default is None]) > 1
