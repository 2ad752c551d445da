"""ScriptedModel -> VerifyReport: runs the saved file in a fresh process, times it, and judges the gates."""

from cpupack.stages.verify.gates import check_gates, choose, judge, unproven
from cpupack.stages.verify.loss import LISTED, LayerLoss, Loss, is_lossy, loss_of, worst_in_words
from cpupack.stages.verify.outputs import compare, load_metric, run_reference
from cpupack.stages.verify.timing import Speed, race, speeds_of, timed

__all__ = [
    "LISTED",
    "LayerLoss",
    "Loss",
    "Speed",
    "check_gates",
    "choose",
    "compare",
    "is_lossy",
    "judge",
    "load_metric",
    "loss_of",
    "race",
    "run_reference",
    "speeds_of",
    "timed",
    "unproven",
    "worst_in_words",
]
