"""Automatic recovery: the search for settings with which every gate holds, at the least loss of speed.

Nothing here builds a model: ``pipeline`` hands in how a trial is built, so the search is plain logic.
"""

from cpupack.recovery.run import Recovered, recover, wanted
from cpupack.recovery.search import Workbench

__all__ = ["Recovered", "Workbench", "recover", "wanted"]
