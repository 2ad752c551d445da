"""Decides threads, instances and batch size, from the host or from the tuned table."""
