"""From the verified model to an ordinary hatchling project, and from that to a wheel."""

from cpupack.stages.package.contents import WheelContents
from cpupack.stages.package.project import finish, stage_project
from cpupack.wheel.build import build_wheel, check_out, publish

__all__ = ["WheelContents", "build_wheel", "check_out", "finish", "publish", "stage_project"]
