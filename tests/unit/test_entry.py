"""The console script: a signal that comes when the work is done changes nothing."""

from __future__ import annotations

import subprocess
import sys

import pytest

CODE = """
import atexit, os, signal, sys
from cpupack import cli, entry, interrupts

def done():
    interrupts.install_handlers()
    sys.exit(0)

cli.main = done
atexit.register(lambda: os.kill(os.getpid(), signal.{name}))
signal.signal(signal.SIGINT, signal.default_int_handler)
entry.main()
"""


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_a_signal_in_the_clean_up(name: str) -> None:
    done = subprocess.run([sys.executable, "-c", CODE.format(name=name)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
