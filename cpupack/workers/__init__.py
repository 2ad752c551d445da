"""Processes that the build starts. They run a saved model as the wheel does, with ``runtime.engine.pool``."""
