"""The options of a comparison. They are checked before torch is imported."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from cpupack.errors import UsageError
from cpupack.peers import COMPARED, EXTRA, OURS, PEERS
from cpupack.recipe import Recipe
from cpupack.runtime.errors import InputError
from cpupack.runtime.names import files_below

_JPEG = {".jpg", ".jpeg"}
MIXED = "uint8-vs-float32"

INPUTS = {
    "float32": "float32, normalized before the clock starts, in each engine's own layout",
    "uint8": "uint8 pixels; normalizing them is part of every engine's time",
    MIXED: "cpupack gets uint8 pixels and normalizes them in its time; the others get float32 that was normalized "
    "before the clock starts, in each engine's own layout: their best case",
}
"""What ``--input`` may say, and what it means."""


@dataclass(frozen=True)
class CompareOptions:
    """Options of the command line. ``explicit`` says that the user named the peers.

    ``input_kind`` is a key of ``INPUTS``, or ``auto`` until ``settle`` has read the recipe.
    """

    against: tuple[str, ...] = PEERS
    explicit: bool = False
    budget_s: float = 30.0
    rounds: int = 15
    round_s: float = 1.5
    input_kind: str = "auto"
    files: Path | None = None

    def input_of(self, engine: str) -> str:
        """Return what ``engine`` gets once ``settle`` was called: ``uint8`` or ``float32``."""
        if self.input_kind != MIXED:
            return self.input_kind
        return "uint8" if engine == OURS else "float32"


def check_peers(options: CompareOptions) -> None:
    """Raise UsageError for an unknown peer, or for a named peer that is not installed."""
    for name in options.against:
        if name not in PEERS:
            raise UsageError(f"--against {name}: unknown engine", hint=f"choose from {', '.join(PEERS)}")
    if options.explicit:
        missing = {name: COMPARED[name].missing() for name in options.against if COMPARED[name].missing()}
        if missing:
            listed = "; ".join(f"{name} needs {', '.join(what)}" for name, what in missing.items())
            raise UsageError(f"not installed: {listed}", hint=f"pip install '{EXTRA}'")


def settle(options: CompareOptions, recipe: Recipe) -> CompareOptions:
    """Replace ``auto`` by the kind of input: pixels for models of images, because a server gets pixels.

    Raises UsageError when the options need images but the recipe's model takes none, or takes other inputs beside one.
    """
    if recipe.engine_preprocess is None:
        pixels = options.input_kind in {"uint8", MIXED}
        for option, given in ((f"--input {options.input_kind}", pixels), ("--end-to-end", options.files)):
            if given:
                raise UsageError(f"{option} needs a model whose only input is an image; that of this recipe is none")
    if options.files is not None:
        image_files(options.files)
    if options.input_kind != "auto":
        return options
    return replace(options, input_kind="uint8" if recipe.engine_preprocess else "float32")


def image_files(directory: Path) -> list[str]:
    """Return the JPEG files below ``directory``, sorted. Raises UsageError when there are none."""
    try:
        found = sorted(str(path.resolve()) for path in files_below(directory) if path.suffix.lower() in _JPEG)
    except InputError as error:
        raise UsageError(f"--end-to-end: {error}") from error
    if not found:
        raise UsageError(f"--end-to-end {directory}: there is no .jpg or .jpeg file")
    return found
