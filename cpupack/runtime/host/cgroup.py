"""Reads what the control groups allow this process: CPUs, memory, threads, and how often it was throttled.

Both versions are read from the kernel's files under ``root``, and on hybrid hosts both apply
(Documentation/admin-guide/cgroup-v1/cgroups.rst and cgroup-v2.rst of the Linux sources). A limit holds for
everything below it, so each file is read in the process's own group and in every group above that is visible.
"""

from __future__ import annotations

from pathlib import Path, PurePosixPath


def read_text(path: Path) -> str | None:
    """Return a kernel file's stripped text, None where the kernel has no such file."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return None


def parse_cpu_list(text: str) -> frozenset[int]:
    """Return the CPUs of a kernel list such as ``0-3,8``."""
    cpus: set[int] = set()
    for part in filter(None, (piece.strip() for piece in text.split(","))):
        first, _, last = part.partition("-")
        cpus.update(range(int(first), int(last or first) + 1))
    return frozenset(cpus)


def cpu_quota(root: Path) -> float | None:
    """Return how many CPUs' worth of time the quota allows, the smallest of all levels; None without a limit."""
    found = [_quota_v1(group) for group in _groups(root, "cpu")] + [_quota_v2(group) for group in _groups(root, "")]
    limits = [quota for quota in found if quota is not None]
    return min(limits) if limits else None


def cpu_set(root: Path) -> frozenset[int] | None:
    """Return the CPUs of the process's own cpuset, None where there is none."""
    files = [group / name for group in _groups(root, "cpuset") for name in ("cpuset.effective_cpus", "cpuset.cpus")]
    files += [group / "cpuset.cpus.effective" for group in _groups(root, "")]
    for path in files:
        if text := read_text(path):
            return parse_cpu_list(text)
    return None


def memory_left_bytes(root: Path) -> int | None:
    """Return the memory that this process's groups may still take, the least of all levels; None without a limit.

    What of files was not used lately is given back before a group runs out, so it does not count.
    """
    found = [
        _left(group, "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        for group in _groups(root, "memory")
    ]
    found += [_left(group, "memory.max", "memory.current", "inactive_file") for group in _groups(root, "")]
    return min((left for left in found if left is not None), default=None)


def _left(group: Path, limit: str, usage: str, unused_files: str) -> int | None:
    most, used = read_text(group / limit), read_text(group / usage)
    if most is None or used is None or not most.isdigit() or not used.isdigit():  # "max": no limit
        return None
    stat = dict(line.split(" ", 1) for line in (read_text(group / "memory.stat") or "").splitlines() if " " in line)
    files = stat.get(unused_files, "0")
    return max(0, int(most) - int(used) + (int(files) if files.isdigit() else 0))


def throttling(root: Path) -> tuple[int, float]:
    """Return how often this process's groups were throttled so far, and for how many seconds in all."""
    count, seconds = 0, 0.0
    for group in [*_groups(root, "cpu"), *_groups(root, "")]:
        for line in (read_text(group / "cpu.stat") or "").splitlines():
            key, _, value = line.partition(" ")
            match key:
                case "nr_throttled":
                    count += int(value)
                case "throttled_time":  # v1: nanoseconds
                    seconds += int(value) / 1e9
                case "throttled_usec":  # v2: microseconds
                    seconds += int(value) / 1e6
    return count, seconds


def _quota_v1(group: Path) -> float | None:
    quota, period = read_text(group / "cpu.cfs_quota_us"), read_text(group / "cpu.cfs_period_us")
    if not quota or not period or int(quota) <= 0 or int(period) <= 0:
        return None
    return int(quota) / int(period)


def _quota_v2(group: Path) -> float | None:
    quota, _, period = (read_text(group / "cpu.max") or "max").partition(" ")
    return None if quota == "max" else int(quota) / int(period or 100_000)


def _groups(root: Path, controller: str) -> list[Path]:
    """Return the process's group of ``controller`` ("" is version 2) and those above it, inner first."""
    path = _own_group(root, controller)
    mount = _mount(root, controller)
    if path is None or mount is None:
        return []
    mounted_at, mounted_group = mount
    # Inside a container the kernel may name a group outside the mounted part. Then the mount is the process's group.
    inner = path.relative_to(mounted_group) if path.is_relative_to(mounted_group) else PurePosixPath()
    if not (mounted_at / inner).is_dir():
        inner = PurePosixPath()
    return [mounted_at / inner, *(mounted_at / above for above in inner.parents)] if inner.parts else [mounted_at]


def _own_group(root: Path, controller: str) -> PurePosixPath | None:
    for line in (read_text(root / "proc/self/cgroup") or "").splitlines():
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if (number == "0" and not controller) or (controller and controller in controllers.split(",")):
            return PurePosixPath(path)
    return None


def _mount(root: Path, controller: str) -> tuple[Path, PurePosixPath] | None:
    """Return where ``controller`` is mounted (under ``root``) and the group it shows (proc(5), mountinfo)."""
    for line in (read_text(root / "proc/self/mountinfo") or "").splitlines():
        left, _, right = line.partition(" - ")
        fields, kind = left.split(), right.split()
        if len(fields) < 5 or len(kind) < 3:
            continue
        wanted = kind[0] == "cgroup" and controller in kind[2].split(",") if controller else kind[0] == "cgroup2"
        if wanted:
            return root / fields[4].lstrip("/"), PurePosixPath(fields[3])
    return None


def thread_limit(root: Path) -> tuple[int | None, int | None]:
    """Return how many threads this process's group has and may have, (None, None) without a limit.

    Of several limits it is the one with the fewest threads left.
    """
    found = []
    for group in [*_groups(root, "pids"), *_groups(root, "")]:
        used, most = read_text(group / "pids.current"), read_text(group / "pids.max")
        if used is not None and most is not None and used.isdigit() and most.isdigit():
            found.append((int(used), int(most)))
    return min(found, key=lambda pair: pair[1] - pair[0]) if found else (None, None)
