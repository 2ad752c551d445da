"""The command line: the group of ``commands/`` and the boundary where errors become exit codes."""

from __future__ import annotations

import signal
import sys
import traceback
from collections.abc import Sequence
from typing import Any, NoReturn

import click

from cpupack import __version__, output
from cpupack.commands.build import build
from cpupack.commands.bundle import bundle
from cpupack.commands.cache import cache
from cpupack.commands.check import check
from cpupack.commands.compare import compare
from cpupack.commands.deploy import deploy
from cpupack.commands.doctor import doctor
from cpupack.commands.fusions import fusions
from cpupack.commands.init import init
from cpupack.commands.inspect import inspect
from cpupack.commands.lock import lock
from cpupack.commands.messages import print_error
from cpupack.commands.report import report
from cpupack.commands.sensitivity import sensitivity
from cpupack.commands.sign import sign
from cpupack.commands.verify import verify
from cpupack.errors import CpupackError, UsageError
from cpupack.interrupts import install_handlers
from cpupack.runtime.errors import HostError
from cpupack.runtime.handlers import raise_refusal
from cpupack.runtime.host.limits import place_fault, why_no_memory

_NO_MEMORY = "DefaultCPUAllocator: can't allocate memory"
"""What torch says, in a RuntimeError."""


class _InterruptedError(Exception):
    """A signal asked to stop. click would print an empty line for KeyboardInterrupt and lose the signal's number."""

    def __init__(self, signum: int) -> None:
        super().__init__(signum)
        self.signum = signum


class _Commands(click.Group):
    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as interrupt:
            raise _InterruptedError(*(interrupt.args or (signal.SIGINT,))) from None


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="cpupack")
def cli() -> None:
    """Turn a PyTorch model into a tuned, verified INT8 wheel for CPUs.

    A recipe (TOML) names the model, its calibration data and the target CPU; `cpupack build` makes the wheel.
    """


for _command in (
    build,
    bundle,
    cache,
    check,
    compare,
    deploy,
    doctor,
    fusions,
    init,
    inspect,
    lock,
    report,
    sensitivity,
    sign,
    verify,
):
    cli.add_command(_command)


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and exit with 0 or with the exit code of the error.

    ``errors.py`` lists the codes. An interrupt exits with the code that a shell reports: 130 for Ctrl-C.
    """
    install_handlers()
    output.prepare()
    try:
        code = cli.main(args=arguments, prog_name="cpupack", standalone_mode=False)
        sys.stdout.flush()
    except output.UnwrittenError as error:
        output.drop()
        if error.broken_pipe:
            sys.exit(128 + signal.SIGPIPE)
        click.echo(f"error: cannot write the output: {error}", err=True)
        sys.exit(UsageError.exit_code)
    except (_InterruptedError, click.exceptions.Abort) as error:
        _print_interrupted()
        sys.exit(128 + (error.signum if isinstance(error, _InterruptedError) else signal.SIGINT))
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except CpupackError as error:
        print_error(error)
        sys.exit(error.exit_code)
    except Exception as error:  # noqa: BLE001 - the boundary: any other one is a bug, shown with its traceback
        _exit_if_refused(error)
        traceback.print_exc()
        click.echo("cpupack: this is a bug in cpupack; please report it with the traceback above", err=True)
        sys.exit(1)
    sys.exit(code or 0)


def _exit_if_refused(error: Exception) -> None:
    """Say what the system refused, and exit, where that is the reason: a place of the user's, memory or open files."""
    fault, code = place_fault(error), UsageError.exit_code
    if fault is None:
        try:
            raise_refusal(error)
        except HostError as refused:
            fault, code = str(refused), CpupackError.exit_code
    if fault is None and (isinstance(error, MemoryError) or _NO_MEMORY in str(error)):
        fault, code = why_no_memory(), CpupackError.exit_code
    if fault is not None:
        click.echo(f"error: {fault}", err=True)
        sys.exit(code)


def _print_interrupted() -> None:
    # A terminal has just echoed ^C, so the cursor is not at the start of a line.
    click.echo(("\n" if sys.stderr.isatty() else "") + "cpupack: interrupted", err=True)


if __name__ == "__main__":
    main()
