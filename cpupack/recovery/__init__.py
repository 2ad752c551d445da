"""Automatic recovery: searches for settings with which every gate holds, at the least loss of speed.

Nothing here builds a model. ``pipeline`` passes in the function that builds a trial.
"""

from cpupack.recovery.run import Recovered, recover, wanted
from cpupack.recovery.search import Workbench

__all__ = ["Recovered", "Workbench", "recover", "wanted"]
