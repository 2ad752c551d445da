"""ATen calls -> the vocabulary of ``cpupack/graph/vocabulary.py``: one handler for each operator, by subject."""

from cpupack.stages.capture.raising.raise_graph import raise_graph
from cpupack.stages.capture.raising.refusals import (
    meets_all_samples,
    refuse_counts_of_samples,
    refuse_numbers,
    refuse_pairs_of_samples,
)

__all__ = [
    "meets_all_samples",
    "raise_graph",
    "refuse_counts_of_samples",
    "refuse_numbers",
    "refuse_pairs_of_samples",
]
