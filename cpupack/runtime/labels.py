"""The class names of a package."""

from __future__ import annotations

from pathlib import Path

from .errors import HostError, IntegrityError
from .host.limits import system_fault
from .manifest import Manifest


def read_labels(package_dir: Path, manifest: Manifest) -> tuple[str, ...] | None:
    """Return the class names of the labels file, one a line, or None without that file. Raises IntegrityError."""
    if manifest.labels is None:
        return None
    path = package_dir / manifest.labels
    try:
        # splitlines would also split at rare characters that a label may hold.
        labels = tuple(path.read_text(encoding="utf-8").removesuffix("\n").split("\n"))
    except (OSError, UnicodeDecodeError) as error:
        if (refused := system_fault(error)) is not None:
            raise HostError(refused) from error
        raise IntegrityError(f"cannot read the labels {path}: {error}") from error
    shapes = [each.get("shape") for each in manifest.outputs] or [manifest.model["output_shape"]]
    scores = [shape for shape in shapes if isinstance(shape, list) and len(shape) == 1]
    # The scores of a detector are one for each place, and its build has checked the labels.
    classifies = (manifest.task or {}).get("kind", "classification") in {"classification", "raw"}
    if classifies and len(scores) == 1 and len(labels) != scores[0][0]:
        raise IntegrityError(f"{path} has {len(labels)} labels for {scores[0][0]} classes; reinstall {manifest.name}")
    return labels
