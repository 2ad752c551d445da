"""The parts of ``benchmarks/trained.py``: networks, their inputs, and the training of two of them."""
