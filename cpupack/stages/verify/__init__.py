"""ScriptedModel -> VerifyReport: what the saved file answers in a fresh process, how fast, and if the gates hold."""

from cpupack.stages.verify.gates import check_gates, choose, doubts, judge
from cpupack.stages.verify.loss import LISTED, LayerLoss, Loss, is_lossy, loss_of, worst_in_words
from cpupack.stages.verify.outputs import compare, load_metric, run_reference
from cpupack.stages.verify.timing import race

__all__ = [
    "LISTED",
    "LayerLoss",
    "Loss",
    "check_gates",
    "choose",
    "compare",
    "doubts",
    "is_lossy",
    "judge",
    "load_metric",
    "loss_of",
    "race",
    "run_reference",
    "worst_in_words",
]
