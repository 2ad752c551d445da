"""The staged project, its tuned setting, and the wheel."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class StagedProject:
    """The runner as an ordinary Python project on disk, before the wheel is built.

    ``root`` holds pyproject.toml, ``package_dir`` is ``root/src/IMPORT_NAME``.
    """

    root: Path
    package_dir: Path
    import_name: str
    distribution: str
    version: str
    platform_tag: str


@dataclass(frozen=True)
class TunePlan:
    """The chosen setting and all measurements that it was chosen from.

    ``rows`` are the bench results, one dict for each measurement. ``tuned`` is false when nothing was measured
    (``--no-tune``, or a target that this host cannot run). The runner then chooses the setting from the host alone.
    """

    tuned: bool
    objective: str
    threads: int | None = None
    instances: int | None = None
    batch_size: int | None = None
    max_latency_ms: float | None = None
    reason: str = ""
    rows: tuple[dict[str, Any], ...] = ()
    searched_s: float = 0.0


@dataclass(frozen=True)
class BuiltWheel:
    """A finished wheel in the output directory."""

    path: Path
    sha256: str
    size_bytes: int
    distribution: str
    version: str
    platform_tag: str
