"""``NAME serve --plan``: loads the model and says which rate this host carries with the promise. Opens no port."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..errors import InputError
from ..runner import Runner
from . import promise
from .model import ServedModel
from .options import ServeOptions
from .times import PrepareTimes


def run(package_dir: Path, options: ServeOptions) -> tuple[dict[str, Any], str]:
    """Return the plan as JSON and as text. Raises InputError without a promise, HostError where it cannot be held."""
    if options.max_latency_ms is None:
        raise InputError("--plan needs --max-latency-ms: which promise?")
    setting = promise.choose_setting(package_dir, options)
    with Runner(
        package_dir, threads=setting.threads, instances=setting.instances, batch_size=setting.batch_size
    ) as runner:
        model = ServedModel(runner, package_dir)
        table = setting.table(model)
        decoding_s = promise.learn_decoding(model, PrepareTimes())
        promise.check_promise(options.max_latency_ms, table, decoding_s)
        found = promise.carried(runner.manifest, setting, table, model, decoding_s, options.max_latency_ms)
    return found, promise.format_carried(found)
