"""``NAME batch`` in this process alone: the baseline of every cluster."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..runner import Runner
from .options import BatchOptions
from .prepare import Say, plan_of, prepare
from .stream import streaming
from .summary import Progress, facts
from .work import work


def run(package_dir: Path, options: BatchOptions, say: Say) -> dict[str, Any]:
    """Run over all inputs that are not done, and return the figures. Raises InputError where no input was readable."""
    begin_s = time.monotonic()
    prepared = prepare(package_dir, options, say)
    plan = plan_of(prepared.manifest, options)
    progress = Progress(prepared, say)
    if prepared.left:
        with (
            Runner(package_dir, threads=plan.threads, instances=plan.instances, batch_size=plan.batch_size) as runner,
            streaming(runner, prepared.job.run.top_k) as stream,
        ):
            for report in work(runner, stream, prepared.job, prepared.left):
                progress.add(report)
    prepared.job.store.finish()
    check_some_readable(progress)
    took_s = time.monotonic() - begin_s
    return facts(prepared, progress, took_s, plan.threads * plan.instances, 1, None)


def check_some_readable(progress: Progress) -> None:
    """Raise InputError where every input of the run failed: then the wrong directory was given, or the wrong column."""
    if progress.computed and progress.unreadable == progress.computed == progress.prepared.job.run.inputs:
        raise InputError(
            f"none of the {progress.computed:,} inputs could be read, for example: {progress.examples[0]}; the rows of "
            f"{progress.prepared.job.target} say so for each"
        )
