"""A plan and facts of a build, as the last stages would have found them."""

from cpupack.artifacts import TunePlan

FACTS = {"weights": "weights.pt", "stages_s": {"load": 1.5}, "report": {"sqnr_db": 41.5}}
PLAN = TunePlan(
    tuned=True,
    objective="throughput",
    threads=1,
    instances=2,
    batch_size=4,
    reason="fastest of 3",
    rows=(
        {"threads": 2, "instances": 1, "batch_size": 4, "throughput_per_s": 100.0},
        {"threads": 1, "instances": 2, "batch_size": 4, "throughput_per_s": 210.0},
        {"threads": 1, "instances": 2, "batch_size": 4, "throughput_per_s": 205.0},
        {"threads": 1, "instances": 2, "batch_size": 4, "throughput_per_s": 190.0},
    ),
    searched_s=1.5,
)
