"""The names of classes, against the shapes of the outputs that they are for."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from cpupack.runtime.errors import IntegrityError
from cpupack.runtime.labels import read_labels
from cpupack.runtime.manifest import read_manifest
from cpupack.runtime.signature import OutputSpec


def test_labels_of_a_detector_are_not_one_for_each_place(package_dir: Path, tmp_path: Path) -> None:
    """Its scores are ``(n,)``: here 6 places and 2 classes. A classifier has as many labels as scores."""
    (tmp_path / "labels.txt").write_text("cat\ndog\n")
    outputs = [OutputSpec("boxes", (6, 4)).to_dict(), OutputSpec("scores", (6,)).to_dict()]
    manifest = dataclasses.replace(read_manifest(package_dir), outputs=outputs)
    detector = dataclasses.replace(manifest, task={"kind": "detection"})
    assert read_labels(tmp_path, detector) == ("cat", "dog")
    for task in ({"kind": "classification"}, {"kind": "raw"}, None):
        with pytest.raises(IntegrityError, match="2 labels for 6 classes"):
            read_labels(tmp_path, dataclasses.replace(manifest, task=task))
