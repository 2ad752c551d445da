"""What a build tells of itself, made up: a plan and every section of facts, for pages to show."""

from __future__ import annotations

from typing import Any

from cpupack.artifacts import TunePlan

PLAN = TunePlan(
    tuned=True,
    objective="throughput",
    threads=1,
    instances=2,
    batch_size=8,
    reason="faster than 1 x 2 by a fifth",
    rows=tuple(
        {
            "threads": threads,
            "instances": 3 - threads,
            "batch_size": batch,
            "throughput_per_s": 1000.5 * batch / threads,
            "latency_ms": {"p50": 1.5 * batch, "p99": 2.25 * batch},
        }
        for threads in (1, 2)
        for batch in (1, 8)
    ),
)
LAYERS = [
    {
        "name": "0",
        "kind": "conv2d",
        "precision": "int8",
        "kernel": "quantized::conv2d_relu",
        "scale": 0.0123,
        "zero_point": 117,
        "weight_sqnr_db": 38.25,
        "output_sqnr_db": 31.75,
        "reason": None,
    },
    {"name": "4", "kind": "linear", "precision": "fp32", "reason": "[quantize] skip names it"},
]
RECOVERY = {
    "engine": "fbgemm",
    "why": "it was the fastest",
    "winner": 1,
    "toml": '[quantize]\nobserver = "mse"\n',
    "stopped": None,
    "trials": [
        {"label": "as written", "settings": {}, "speedup": 3.5, "sqnr_db": 12.5, "passed": False, "pareto": True},
        {
            "label": "mse",
            "settings": {"observer": "mse"},
            "speedup": 3.25,
            "sqnr_db": 22.5,
            "passed": True,
            "pareto": True,
        },
        {"label": "entropy", "settings": {"observer": "entropy"}, "error": "it < could not & be built"},
    ],
}
SECTIONS: dict[str, Any] = {
    "layers": LAYERS,
    "recovery": RECOVERY,
    "saturation": {
        "finding": "safe without VNNI: no 16-bit sum overflows",
        "isa": "avx2",
        "layers": [{"name": "0", "activation_bits": 7, "bound": 21875, "overflows": 0, "decision": "7 bits are safe"}],
        "refused": [{"name": "0", "activation_bits": 8, "bound": 43750, "overflows": 3, "decision": "overflows"}],
    },
    "calibration": {
        "samples": 4,
        "batches": 2,
        "data": "images:photos",
        "observer": "mse",
        "evaluation_data": None,
        "warnings": ["the ranges still moved"],
        "activations": [
            {
                "name": "0",
                "minimum": -1.5,
                "maximum": 3.0625,
                "low": -1.25,
                "high": 2.5,
                "moved": 0.03125,
                "clipped_share": 0.00001,
                "outlier_ratio": 1.375,
                "far_percentile": 2.25,
                "channels": 4,
                "constant_channels": 1,
                "exceeded": None,
                "exceeding_share": None,
            }
        ],
    },
}
