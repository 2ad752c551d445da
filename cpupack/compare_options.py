"""What a comparison is asked for, checked before torch is imported."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from cpupack.errors import UsageError
from cpupack.peers import ENGINES, EXTRA, PEERS


@dataclass(frozen=True)
class CompareOptions:
    """What the command line asks for. ``explicit`` says that the peers were named, not taken from the default."""

    against: tuple[str, ...] = PEERS
    explicit: bool = False
    budget_s: float = 30.0
    rounds: int = 15
    round_s: float = 1.5
    input_kind: str = "float32"
    files: Path | None = None


def check_peers(options: CompareOptions) -> None:
    """Raise UsageError for an unknown peer, or for one that was named and is not installed."""
    for name in options.against:
        if name not in PEERS:
            raise UsageError(f"--against {name}: unknown engine", hint=f"known are {', '.join(PEERS)}")
    if options.explicit:
        missing = {name: ENGINES[name].missing() for name in options.against if ENGINES[name].missing()}
        if missing:
            told = "; ".join(f"{name} needs {', '.join(what)}" for name, what in missing.items())
            raise UsageError(f"not installed: {told}", hint=f"pip install '{EXTRA}'")
