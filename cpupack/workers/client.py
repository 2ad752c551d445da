"""Starts a worker in a fresh interpreter."""

from __future__ import annotations

import json
import os
import re
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import cpupack
from cpupack.errors import VerificationError
from cpupack.progress import Progress
from cpupack.runtime.errors import HostError
from cpupack.runtime.host.processes import module_command, run
from cpupack.scratch import NO_ROOM
from cpupack.workers.steps import heard


def run_worker(module: str, spec: dict[str, Any], spec_path: Path, progress: Progress | None = None) -> None:
    """Write ``spec``, run ``cpupack.workers.MODULE SPEC_PATH`` of this cpupack and wait. An interrupt kills the child.

    ``progress`` is told the steps that the worker tells.

    Raises VerificationError with the worker's last line of stderr when it fails or cannot start, and OSError where its
    files had no room, as if they had been written here.
    """
    spec_path.write_text(json.dumps(spec), encoding="utf-8")
    try:
        with heard(spec_path, progress) if progress is not None else nullcontext():
            command = module_command(f"cpupack.workers.{module}", Path(cpupack.__file__).parent)
            finished = run([*command, str(spec_path)])
    except HostError as error:
        raise VerificationError(
            f"the saved model cannot be tried in a fresh process ({module}): {error}",
            hint="a build starts processes: is one more allowed here, and may this user run this Python?",
        ) from error
    if finished.returncode != 0:
        lines = [line for line in finished.stderr.splitlines() if line.strip()] or [f"exit code {finished.returncode}"]
        found = re.search(r"\[Errno (\d+)\]", lines[-1])
        if found is not None and (number := int(found[1])) in NO_ROOM:
            raise OSError(number, os.strerror(number))
        raise VerificationError(f"the saved model failed in a fresh process ({module}): {lines[-1]}")
