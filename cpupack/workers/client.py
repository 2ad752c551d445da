"""Starts a worker in a fresh interpreter."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

from cpupack.errors import VerificationError
from cpupack.runtime.host.processes import run


def run_worker(module: str, spec: dict[str, Any], spec_path: Path) -> None:
    """Write ``spec``, run ``python -m cpupack.workers.MODULE SPEC_PATH`` and wait. An interrupt kills the child.

    Raises VerificationError with the worker's last line of stderr when it fails.
    """
    spec_path.write_text(json.dumps(spec), encoding="utf-8")
    search_path = [str(Path(__file__).parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])]
    finished = run(
        [sys.executable, "-m", f"cpupack.workers.{module}", str(spec_path)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(search_path)},
    )
    if finished.returncode != 0:
        lines = [line for line in finished.stderr.splitlines() if line.strip()] or [f"exit code {finished.returncode}"]
        raise VerificationError(f"the saved model failed in a fresh process ({module}): {lines[-1]}")
