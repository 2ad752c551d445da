"""The model card: what a reader must know before relying on a model, from what was measured and what was not."""

from __future__ import annotations

from cpupack.runtime.manifest import Manifest


def card_limits(manifest: Manifest) -> list[str]:
    """Return sentences about what is not known of the model, each a reason to be careful."""
    found = []
    accuracy, calibration = manifest.accuracy, manifest.calibration
    if manifest.random_weights:
        found.append("The weights are random: the predictions mean nothing.")
    if calibration is not None and calibration["synthetic"]:
        found.append(
            "It was calibrated on synthetic data, which is good only to measure speed: build it again with real data "
            "before you rely on its accuracy."
        )
    if accuracy["top1_int8"] is None and accuracy.get("metric") is None:
        found.append(
            "Its accuracy on labelled data was not measured: only how close its outputs are to those of the FP32 model."
        )
    elif accuracy["labelled_samples"] and accuracy["labelled_samples"] < _FEW:
        found.append(
            f"Its accuracy was measured on {accuracy['labelled_samples']} samples only; see the interval above."
        )
    if not manifest.model.get("license"):
        found.append("The recipe names no licence: ask its authors before you use or pass on the weights.")
    return [*found, "What it answers for inputs unlike those that it was trained and measured on is not known."]


_FEW = 1000
"""Below this many samples the 95 % interval of an accuracy is at least three points wide in the middle."""
