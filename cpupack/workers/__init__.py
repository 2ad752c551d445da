"""Processes that the build starts: they run a saved model as the wheel does, with ``runtime.engine.pool`` alone."""
