"""The console script. It imports the commands itself, so that Ctrl-C in that second leaves no traceback either."""

from __future__ import annotations

import os
import signal
import sys
from typing import NoReturn


def main() -> NoReturn:
    """Run ``cpupack`` and exit with its code (see ``cli.main``)."""
    waits = signal.getsignal(signal.SIGINT) is signal.default_int_handler  # else a shell has it ignored
    if waits:
        signal.signal(signal.SIGINT, _leave)
    from cpupack import cli

    try:
        if waits:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        cli.main()
    except KeyboardInterrupt:
        _leave()
    finally:
        for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if callable(signal.getsignal(signum)):  # a handler of Python's: it would raise in the clean-up
                signal.signal(signum, signal.SIG_IGN)  # the work is done, and the interpreter only cleans up


def _leave(*_: object) -> NoReturn:
    """End at once: nothing was begun that would have to be cleaned up."""
    try:
        os.write(2, b"cpupack: interrupted\n")
    finally:
        os._exit(130)


if __name__ == "__main__":
    sys.exit(main())
