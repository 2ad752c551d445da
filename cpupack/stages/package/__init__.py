"""Makes an ordinary hatchling project from the verified model. ``wheel/build.py`` builds the wheel from it."""

from cpupack.stages.package.contents import WheelContents
from cpupack.stages.package.project import finish, stage_project
from cpupack.wheel.build import build_wheel, check_out, publish

__all__ = ["WheelContents", "build_wheel", "check_out", "finish", "publish", "stage_project"]
