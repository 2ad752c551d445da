"""ATen calls -> the vocabulary of ``cpupack/graph/vocabulary.py``: one handler for each operator, by subject."""

from cpupack.stages.capture.raising.raise_graph import (
    raise_graph,
    refuse_filters_by_sample,
    refuse_numbers,
    refuse_pairs_of_samples,
)

__all__ = ["raise_graph", "refuse_filters_by_sample", "refuse_numbers", "refuse_pairs_of_samples"]
