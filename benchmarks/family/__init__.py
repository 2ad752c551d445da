"""The parts of ``benchmarks/families.py``: the architectures, their weights, one architecture's row, and the page."""
