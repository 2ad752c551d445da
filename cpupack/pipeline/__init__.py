"""Builds wheels from a recipe. Only this package knows the order of the stages."""

from cpupack.pipeline.contest import Settled, contend, settle
from cpupack.pipeline.prepare import Prepared, prepare, run_float
from cpupack.pipeline.questions import check_model, fusible_chains, rank_layers
from cpupack.pipeline.run import BuildOptions, BuildResult, build, stage_untuned

__all__ = [
    "BuildOptions",
    "BuildResult",
    "Prepared",
    "Settled",
    "build",
    "check_model",
    "contend",
    "fusible_chains",
    "prepare",
    "rank_layers",
    "run_float",
    "settle",
    "stage_untuned",
]
