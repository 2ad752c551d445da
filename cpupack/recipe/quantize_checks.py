"""Checks of ``[quantize]``: what its mode needs, layers that it names, and recovery."""

from __future__ import annotations

from collections.abc import Iterator

from cpupack.recipe import Evaluation
from cpupack.recipe.problems import Problem
from cpupack.recipe.view import Check, View
from cpupack.targets.engines import ENGINES


def _quantize(view: View) -> Iterator[Problem]:
    mode = view("quantize", "mode")
    if mode != "dynamic" and not view.given("calibration"):
        yield Problem(
            ("calibration",),
            f'is missing, and mode = "{mode}" needs its data to choose activation ranges; add [calibration] with '
            'source = "images:DIR" (or "synthetic", only to measure speed)',
            missing=True,
        )
    if mode == "dynamic":
        for key in ("observer", "percentile", "weights", "equalize", "bias_correction", "rounding"):
            if view.given("quantize", key):
                yield Problem(("quantize", key), 'has no effect with mode = "dynamic"')
        if isinstance(view("fuse", "modules"), list):
            yield Problem(("fuse", "modules"), 'has no effect with mode = "dynamic"; leave it out')
        if view("quantize", "dynamic"):
            yield Problem(("quantize", "dynamic"), 'has no effect with mode = "dynamic", which does so with all layers')
        if view("quantize", "static"):
            yield Problem(
                ("quantize", "static"),
                'needs ranges from calibration data, which mode = "dynamic" does not read; set mode = "auto", and name '
                "the other layers in dynamic",
            )
    elif view.given("quantize", "percentile") and view("quantize", "observer") != "percentile":
        yield Problem(
            ("quantize", "percentile"),
            f'has no effect with observer = "{view("quantize", "observer")}"',
            None,
        )


def _layers_by_name(view: View) -> Iterator[Problem]:
    """Check ``static`` and ``dynamic`` of ``[quantize]``."""
    for name in view("quantize", "static"):
        if name in view("quantize", "dynamic"):
            yield Problem(("quantize", "dynamic"), f'has "{name}", which static has too')
    for cpu in view("target", "cpu"):
        record = ENGINES.get(view("target", cpu, "engine"))  # None for auto
        for key in ("static", "dynamic"):
            if view("quantize", key) and record is not None and record.quantizer != "native":
                told = f'is for the native engine, and [target.{cpu}] engine = "{record.name}"'
                yield Problem(("quantize", key), told)


def _recovery(view: View) -> Iterator[Problem]:
    if not view("quantize", "recover"):
        if view.given("quantize", "budget_s"):
            yield Problem(("quantize", "budget_s"), "has no effect without recover = true")
        return
    if not any(view.given(*key) and view(*key) != "off" for key in _accuracy_gates()):
        yield Problem(
            ("quantize", "recover"),
            "has no effect: [evaluation] sets no gate on accuracy that it could recover; add one of "
            + ", ".join(name for _, name in _accuracy_gates()),
        )


def _accuracy_gates() -> list[tuple[str, str]]:
    """Return the gates on accuracy: all keys of ``[evaluation]`` that set a bound, except min_speedup."""
    bounds = [name for name in Evaluation.model_fields if name.startswith(("min_", "max_"))]
    return [("evaluation", name) for name in bounds if name != "min_speedup"]


CHECKS: tuple[Check, ...] = (_quantize, _layers_by_name, _recovery)
