"""How a worker says how far it is: it keeps the numbers in a file beside its SPEC, which the build reads meanwhile."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cpupack.progress import Progress

_LOOKED_S = 1.0


def tell(spec_path: str | Path, done: int, total: int, what: str) -> None:
    """Say that ``done`` of ``total`` units are finished. Without room for the file nothing is said."""
    path = _path(spec_path)
    new = path.with_suffix(".new")
    with contextlib.suppress(OSError):
        new.write_text(f"{done} {total} {what}", encoding="utf-8")
        new.replace(path)


@contextmanager
def heard(spec_path: Path, progress: Progress) -> Iterator[None]:
    """Report what a worker says while a block waits for it."""
    path, over = _path(spec_path), threading.Event()
    path.unlink(missing_ok=True)

    def listen() -> None:
        while not over.wait(_LOOKED_S):
            if path.exists():
                done, total, what = path.read_text(encoding="utf-8").split(" ", 2)
                progress.step(int(done), int(total), what)

    listener = threading.Thread(target=listen, name="worker steps", daemon=True)
    listener.start()
    try:
        yield
    finally:
        over.set()
        listener.join()


def _path(spec_path: str | Path) -> Path:
    return Path(spec_path).with_suffix(".steps")
