"""What a comparison is asked for, checked before torch is imported."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from cpupack.errors import UsageError
from cpupack.peers import COMPARED, EXTRA, PEERS
from cpupack.recipe import Recipe


@dataclass(frozen=True)
class CompareOptions:
    """What the command line asks for. ``explicit`` says that the peers were named, not taken from the default.

    ``input_kind`` is ``float32`` or ``uint8``; ``auto`` until ``settle`` knows the recipe.
    """

    against: tuple[str, ...] = PEERS
    explicit: bool = False
    budget_s: float = 30.0
    rounds: int = 15
    round_s: float = 1.5
    input_kind: str = "auto"
    files: Path | None = None


def check_peers(options: CompareOptions) -> None:
    """Raise UsageError for an unknown peer, or for one that was named and is not installed."""
    for name in options.against:
        if name not in PEERS:
            raise UsageError(f"--against {name}: unknown engine", hint=f"known are {', '.join(PEERS)}")
    if options.explicit:
        missing = {name: COMPARED[name].missing() for name in options.against if COMPARED[name].missing()}
        if missing:
            told = "; ".join(f"{name} needs {', '.join(what)}" for name, what in missing.items())
            raise UsageError(f"not installed: {told}", hint=f"pip install '{EXTRA}'")


def settle(options: CompareOptions, recipe: Recipe) -> CompareOptions:
    """Choose the input where it is left open: pixels for models of images, which is what a server has of them.

    Raises UsageError when the recipe's model takes no images and the options need some.
    """
    if recipe.preprocess is None:
        for option, given in (("--input uint8", options.input_kind == "uint8"), ("--end-to-end", options.files)):
            if given:
                raise UsageError(f"{option} needs a model of images; this recipe has no [preprocess]")
    if options.files is not None:
        image_files(options.files)
    if options.input_kind != "auto":
        return options
    return replace(options, input_kind="uint8" if recipe.preprocess else "float32")


def image_files(directory: Path) -> list[str]:
    """Return the JPEG files below ``directory``, sorted. Raises UsageError when there are none."""
    found = sorted(str(path.resolve()) for path in directory.rglob("*") if path.suffix.lower() in {".jpg", ".jpeg"})
    if not found:
        raise UsageError(f"--end-to-end {directory}: no .jpg or .jpeg file is there")
    return found
