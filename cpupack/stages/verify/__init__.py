"""ScriptedModel -> VerifyReport: what the saved file answers in a fresh process, how fast, and if the gates hold."""

from cpupack.stages.verify.gates import check_gates, choose, doubts, judge
from cpupack.stages.verify.outputs import compare, load_metric, run_reference
from cpupack.stages.verify.timing import race

__all__ = ["check_gates", "choose", "compare", "doubts", "judge", "load_metric", "race", "run_reference"]
