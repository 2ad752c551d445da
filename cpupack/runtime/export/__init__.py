"""Writes the model for programs that have no Python: ``NAME export --c``."""
