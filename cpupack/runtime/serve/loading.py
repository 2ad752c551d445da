"""Loads the model of a server: warm, proven, with the times of its calls. What runs it and what is measured of it."""

from __future__ import annotations

import gc
import importlib
import importlib.util
import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import HostError, IntegrityError
from ..files import MANIFEST_NAME
from ..runner import Runner
from .executor import Executor
from .metrics import Metrics
from .model import ServedModel
from .options import ServeOptions
from .promise import check_promise, choose_setting, learn_decoding
from .request import Observer
from .scheduler import Limits, Scheduler
from .service import Service, State
from .times import CallTimes, PrepareTimes

_YOUNG = 10_000
"""New objects, less those that are gone, after which the garbage collector looks for cycles among them."""


@dataclass(frozen=True)
class Code:
    """The package's code as it was imported: its Runner, and the hashes of its files as the manifest has them.

    ``module`` is the name that it was imported as anew, None for what this process began with.
    """

    make_runner: Any
    files: Mapping[str, str]
    module: str | None = None

    @classmethod
    def own(cls, package_dir: Path) -> Code:
        """Return the code that runs here."""
        return cls(Runner, _hashes_of_code(package_dir))

    def forget(self) -> None:
        """Give back the memory of code that nothing runs any more, in so far as it was imported anew."""
        if self.module is not None:
            for name in [each for each in sys.modules if each.partition(".")[0] == self.module]:
                del sys.modules[name]


@dataclass(frozen=True)
class Loaded:
    """A model that is warm and proven, with how long its calls take, and the code that runs it."""

    model: ServedModel
    times: CallTimes
    prepare: PrepareTimes
    source: str
    code: Code = field(compare=False)


def load(package_dir: Path, options: ServeOptions, before: Code | None = None, module: str = "") -> Loaded:
    """Load, warm and prove the model, in a thread of its own.

    ``before`` is the code that runs the model so far, at a reload. It goes on where the package has the same;
    other code is imported as ``module``. Without it the package's own code runs the model.

    Raises HostError where the promise cannot be held or an output is not finite, InputError and IntegrityError.
    """
    code = Code.own(package_dir) if before is None else code_now(package_dir, before, module)
    try:
        setting = choose_setting(package_dir, options)
        runner = code.make_runner(
            package_dir, threads=setting.threads, instances=setting.instances, batch_size=setting.batch_size
        )
        try:
            model = ServedModel(runner, package_dir)
            model.warm()
            _prove(model)
            table = setting.table(model)
            prepare = PrepareTimes()
            check_promise(options.max_latency_ms, table, learn_decoding(model, prepare))
        except BaseException:
            runner.close()
            raise
    except BaseException:
        if code is not before:
            code.forget()
        raise
    return Loaded(model, CallTimes(table), prepare, setting.source, code)


def executor_of(loaded: Loaded, options: ServeOptions, metrics: Metrics) -> Executor:
    """Return what runs the model's calls, with its queue. To be made on the event loop's thread."""
    limits = Limits(options.max_queue, options.max_queue_bytes)
    observer = Observer(metrics.observe_call, metrics.observe_wait)
    scheduler = Scheduler(loaded.times, loaded.model.runner.plan.instances, limits)
    return Executor(loaded.model, scheduler, loaded.prepare, observer)


def add_gauges(metrics: Metrics, service: Service) -> None:
    """Add what a service says of itself whenever it is asked."""
    gauge = metrics.gauge

    def of_scheduler(read: Callable[[Scheduler], float]) -> Callable[[], float]:
        return lambda: read(service.executor.scheduler) if service.state is not State.STARTING else 0.0

    gauge("ready", "1 when the server is ready.", lambda: float(service.ready))
    gauge("queue_requests", "Requests that wait.", of_scheduler(lambda one: one.waiting))
    gauge("running_requests", "Requests that are in a call of the model.", of_scheduler(lambda one: one.running))
    gauge("held_bytes", "Bodies of admitted requests.", of_scheduler(lambda one: one.held_bytes))
    gauge(
        "table_drift_ratio",
        "Measured time of calls over the table's mean.",
        of_scheduler(lambda one: one.times.correction),
    )
    gauge("table_tail_ratio", "Measured p99 of calls over the table's p99.", of_scheduler(lambda one: one.times.tail))
    gauge("promise_seconds", "The promised latency, 0 without one.", lambda: service.promise_s or 0.0)
    gauge(
        "model_info", "1, with the model and its version.",
        lambda: {(service.model.name, service.model.version): 1.0} if service.state is not State.STARTING else {},
        ("model", "version"),
    )  # fmt: skip


def collect_less() -> None:
    """Keep the garbage collector from looking through all that was loaded, again and again.

    A full collection of numpy, the model's tables and the modules takes 20 ms or more, and stops every thread. After a
    reload the model and the code before are among what is collected.
    """
    gc.unfreeze()
    gc.collect()
    gc.freeze()
    gc.set_threshold(_YOUNG, 20, 20)


def _prove(model: ServedModel) -> None:
    """Run the golden inputs. Raises HostError when an output is not finite."""
    inputs = model.golden_inputs()
    for start in range(0, len(inputs), model.batch_size):
        if not np.isfinite(model.run(inputs[start : start + model.batch_size], 0)).all():
            raise HostError("the outputs of the golden inputs are not finite; run `verify`")


def code_now(package_dir: Path, before: Code, module: str) -> Code:
    """Return ``before`` where the package has the same code, else its code imported anew. What runs already stays."""
    files = _hashes_of_code(package_dir)
    if files and files == before.files:  # importing the same once more took 2.6 MB, at each rotation of the log
        return before
    runtime = package_dir / "_runtime"
    spec = importlib.util.spec_from_file_location(
        module, runtime / "__init__.py", submodule_search_locations=[str(runtime)]
    )
    if spec is None or spec.loader is None:
        raise IntegrityError(f"{runtime} cannot be imported; reinstall the package")
    package = importlib.util.module_from_spec(spec)
    sys.modules[module] = package
    importlib.invalidate_caches()
    try:
        spec.loader.exec_module(package)
        return Code(importlib.import_module(f"{module}.runner").Runner, files, module)
    except BaseException:
        Code(None, {}, module).forget()
        raise


def _hashes_of_code(package_dir: Path) -> dict[str, str]:
    """Return the hash of each file of the package's code, {} where its manifest does not say them.

    A later version's manifest may have another form: its own code reads it.
    """
    try:
        files = json.loads((package_dir / MANIFEST_NAME).read_text(encoding="utf-8"))["files"]
        return {name: entry["sha256"] for name, entry in files.items() if name.startswith("_runtime/")}
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return {}
