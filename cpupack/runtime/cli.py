"""The packaged model's command line: ``info | verify | predict | embed | bench | tune | plan | batch | stream |
export | serve``.

Argument errors, ``--help`` and ``info`` answer without importing torch. Each command imports what it needs when it is
the one that runs: together they take longer than a first prediction.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from . import extras
from .engine.contract import check_family
from .errors import HostError, InputError, IntegrityError, RandomWeightsWarning, RunnerError
from .handlers import raise_refusal
from .host.limits import place_fault, why_no_memory
from .manifest import read_manifest
from .output import EXIT_INTERRUPTED, say, tell, written
from .plain import to_plain

if TYPE_CHECKING:
    from .bench.options import BenchOptions
    from .bench.results import BenchResult
    from .tune.rows import Row
    from .verify import Verification

EXIT_OK, EXIT_FAILED, EXIT_USAGE, EXIT_HOST = 0, 1, 2, 3

Result = tuple[dict[str, Any], str, int]
"""What a command found: the JSON object, the same as text, the exit code."""


def main(package_dir: Path, argv: Sequence[str] | None = None, prog: str | None = None) -> int:
    """Run one command of the package in ``package_dir`` and return the exit code.

    0 ok, 1 verification failed or unexpected, 2 usage or input, 3 host or integrity.
    """
    prog = prog or package_dir.name.replace("_", "-")
    given = sys.argv[1:] if argv is None else argv
    return _guarded(prog, lambda: _dispatch(package_dir, _parser(prog, given), given))


def bench_main(package_dir: Path, argv: Sequence[str] | None = None, prog: str | None = None) -> int:
    """Run ``bench`` alone, as the direct entry ``NAME-bench`` does. Exit codes as ``main``."""
    prog = prog or package_dir.name.replace("_", "-") + "-bench"
    parser = _Parser(prog=prog, description="Measure throughput and latency of the packaged model on this host.")
    _add_bench(parser)
    _finish(parser, _bench)
    return _guarded(prog, lambda: _dispatch(package_dir, parser, argv))


class _Parser(argparse.ArgumentParser):
    """argparse, with errors on one line, and with help that cannot be written an error like any other output."""

    def _print_message(self, message: str, file: Any = None) -> None:  # argparse's own drops an OSError
        if file is sys.stderr:
            tell(message.removesuffix("\n"))
        else:
            say(file, message.removesuffix("\n"))

    def error(self, message: str) -> NoReturn:
        self.exit(EXIT_USAGE, f"{self.prog}: error: {message} (see {self.prog} --help)\n")


def _parser(prog: str, argv: Sequence[str]) -> _Parser:
    """Return the parser, in which only the command that ``argv`` names has its arguments."""
    parser = _Parser(prog=prog, description="A quantized model with its own checks, predictions and benchmark.")
    parser.add_argument("--version", action="store_true", help="print the package's name and version")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")
    chosen = next((argument for argument in argv if not argument.startswith("-")), None)
    for name, (text, add_arguments, run) in _COMMANDS.items():
        command = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
        if name == chosen:
            add_arguments(command)
            _finish(command, run)
    return parser


def _finish(parser: argparse.ArgumentParser, run: Callable[[Path, argparse.Namespace], Result]) -> None:
    parser.add_argument("--json", action="store_true", help="print one JSON object on stdout")
    parser.set_defaults(command=run)


def _add_nothing(_: argparse.ArgumentParser) -> None:
    pass


def _add_predict(parser: argparse.ArgumentParser) -> None:
    from . import predicting

    predicting.add_arguments(parser)


def _add_embed(parser: argparse.ArgumentParser) -> None:
    from . import text_command

    text_command.add_embed_arguments(parser)


def _add_bench(parser: argparse.ArgumentParser) -> None:
    from .bench import options

    options.add_arguments(parser)


def _add_tune(parser: argparse.ArgumentParser) -> None:
    from .tune import command

    command.add_arguments(parser)


def _add_plan(parser: argparse.ArgumentParser) -> None:
    from .capacity import command

    command.add_arguments(parser)


def _add_batch(parser: argparse.ArgumentParser) -> None:
    from .batch import options

    options.add_arguments(parser)


def _add_stream(parser: argparse.ArgumentParser) -> None:
    from . import stream_command

    stream_command.add_arguments(parser)


def _add_export(parser: argparse.ArgumentParser) -> None:
    from .export import command

    command.add_arguments(parser)


def _add_serve(parser: argparse.ArgumentParser) -> None:
    from .serve import options

    options.add_arguments(parser)


def _dispatch(package_dir: Path, parser: _Parser, argv: Sequence[str] | None) -> int:
    args = parser.parse_args(argv)
    if getattr(args, "version", False):
        manifest = read_manifest(package_dir)
        say(sys.stdout, f"{manifest.name} {manifest.version}")
        return EXIT_OK
    if not hasattr(args, "command"):
        *names, last = _COMMANDS
        parser.error(f"which command? {', '.join(names)} or {last}")
    if args.command is not _info:  # which shows its facts on any host, and then fails like the others
        check_family(read_manifest(package_dir))
    facts, text, code = args.command(package_dir, args)
    if args.json or text:  # a command that writes as it goes has no text
        say(sys.stdout, json.dumps(to_plain(facts), indent=2, allow_nan=False) if args.json else text)
    check_family(read_manifest(package_dir))
    return int(code)


def _guarded(prog: str, run: Callable[[], int]) -> int:
    """Turn the runner's own errors into one line and an exit code. Any other exception is a bug and shows."""
    return written(prog, lambda: _coded(prog, run))


def _coded(prog: str, run: Callable[[], int]) -> int:
    try:
        with _plain_warnings(prog):
            return _refusals(run)
    except SystemExit as error:  # argparse, after printing help or its error
        return error.code if isinstance(error.code, int) else EXIT_OK
    except KeyboardInterrupt:
        tell(f"{prog}: interrupted")
        return EXIT_INTERRUPTED
    except MemoryError:
        tell(f"{prog}: error: {why_no_memory()}")
        return EXIT_HOST
    except RunnerError as error:
        tell(f"{prog}: error: {error}")
        if isinstance(error, InputError):
            return EXIT_USAGE
        return EXIT_HOST if isinstance(error, HostError | IntegrityError) else EXIT_FAILED


def _refusals(run: Callable[[], int]) -> int:
    """Run a command. Raises HostError where the system refused something, InputError where it refused a place."""
    try:
        return run()
    except (RunnerError, OSError, ImportError) as error:
        raise_refusal(error)
        if (fault := place_fault(error)) is not None:
            raise InputError(fault) from error
        raise


@contextmanager
def _plain_warnings(prog: str) -> Iterator[None]:
    """Print warnings as ``PROG: warning: ...``, without the line of source that Python adds."""

    def show(message: Warning | str, *_: Any, **__: Any) -> None:
        tell(f"{prog}: warning: {message}")

    with warnings.catch_warnings():
        warnings.showwarning = show
        warnings.simplefilter("always", RandomWeightsWarning)  # neither silenced nor turned to an error
        yield


def _info(package_dir: Path, _: argparse.Namespace) -> Result:
    from . import info

    facts = info.collect(package_dir)
    return facts, info.format_info(facts), EXIT_OK if facts["runs_here"] else EXIT_HOST


def _tune(package_dir: Path, args: argparse.Namespace) -> Result:
    from .tune import command

    options = command.from_arguments(args)

    def show(row: Row, spent_s: float) -> None:
        tell(f"{spent_s:4.0f} of {options.budget_s:.0f} s  {command.row_text(row)}")

    result = command.run(package_dir, options, show, on_start=tell).to_dict()
    return result, command.format_table(result), EXIT_OK


def _plan(package_dir: Path, args: argparse.Namespace) -> Result:
    from .capacity import command

    answer = command.run(package_dir, command.from_arguments(args)).to_dict()
    return answer, command.format_plan(answer), EXIT_OK


def _batch(package_dir: Path, args: argparse.Namespace) -> Result:
    from .batch import options as batch_options

    name = read_manifest(package_dir).name
    extras.require("pyarrow", f"{name}[batch]", "batch")
    options = batch_options.from_arguments(args)
    from .batch import summary

    if options.address is None:
        from .batch import command

        found = command.run(package_dir, options, tell)
    else:
        extras.require("ray", f"{name}[ray]", "batch --address")
        from .on_ray.versions import require_ray

        require_ray(name)  # before anything of Ray is imported: an older one may not even be importable
        from .on_ray import batch

        found = batch.run(package_dir, options, tell)
    return found, summary.text(found), EXIT_OK


def _stream(package_dir: Path, args: argparse.Namespace) -> Result:
    from . import stream_command

    facts, text = stream_command.run(package_dir, args)
    return facts, text, EXIT_OK


def _export(package_dir: Path, args: argparse.Namespace) -> Result:
    from .export import command

    facts = command.run(package_dir, args)
    return facts, command.format_export(facts), EXIT_OK


def _serve(package_dir: Path, args: argparse.Namespace) -> Result:
    from .serve import command

    facts, text = command.run(package_dir, args, tell)
    return facts, text, EXIT_OK


def _bench(package_dir: Path, args: argparse.Namespace) -> Result:
    from .bench import options as bench_options
    from .bench import run as bench_run
    from .bench import text as bench_text

    options = bench_options.from_arguments(args)
    if args.server is not None:
        return _bench_server(package_dir, args, options)
    for option, value in (("--token-file", args.token_file), ("--ca", args.ca)):
        if value is not None:
            raise InputError(f"{option} is for --server; leave it out")
    if args.html is not None:
        extras.require("jinja2", extras.JINJA2, "--html")
        from .pages import bench_page

        bench_page.check_target(args.html)
    result = bench_run.run(package_dir, options, lambda text: tell(text))
    facts = result.to_dict()
    if args.html is not None:
        bench_page.write_bench_page(args.html, facts, package_dir)
    return facts, bench_text.format_table(facts), strict_exit_code(result) if args.strict else EXIT_OK


def _bench_server(package_dir: Path, args: argparse.Namespace, options: BenchOptions) -> Result:
    if args.html is not None:
        raise InputError("--html is not for --server; leave it out, or use --json")
    from .serve import command

    command.require_extra(package_dir, ["httptools", "uvloop", "grpc", "google.protobuf"])
    from .serve import options as serve_options
    from .serve import remote_bench

    token = None if args.token_file is None else serve_options.read_token(args.token_file)
    found = remote_bench.run(package_dir, args.server, options, remote_bench.Access(token, args.ca))
    code = EXIT_OK
    if args.strict:
        code = EXIT_HOST if not found["valid"] else EXIT_FAILED if found["passed"] is False else EXIT_OK
    return found, remote_bench.format_table(found), code


def strict_exit_code(result: BenchResult) -> int:
    """Return the exit code of ``bench --strict``: a result that is not valid comes before one that fails its bound."""
    if not result.measurement.valid:
        return EXIT_HOST
    server = result.measurement.server
    return EXIT_FAILED if server is not None and server.passed is False else EXIT_OK


def _verify(package_dir: Path, _: argparse.Namespace) -> Result:
    from .verify import verify

    found = verify(package_dir)
    return dataclasses.asdict(found), _verify_text(found), EXIT_OK if found.passed else EXIT_FAILED


def _verify_text(found: Verification) -> str:
    if found.equal:
        replay = "bit for bit the outputs of the build"
    else:
        replay = (
            f"SQNR {found.sqnr_db:.1f} dB to the outputs of the build (at least {found.min_sqnr_db:.0f}), "
            f"largest difference {found.max_abs_diff:.3g}{_same_class(found.agreement)}"
        )
    against = "equal" if found.sqnr_fp32_db is None else f"SQNR {found.sqnr_fp32_db:.1f} dB"
    return "\n".join(
        [
            f"files    ok, {found.files} hashes match the manifest",
            f"replay   {'ok' if found.passed else 'FAILED'}, {found.samples} golden inputs: {replay}",
            f"FP32     {against}{_same_class(found.agreement_fp32)} (for information)",
            "verified" if found.passed else "NOT VERIFIED: the results on this host are not those of the build",
        ]
    )


def _same_class(agreement: float | None) -> str:
    return "" if agreement is None else f", same class for {agreement:.0%}"


def _predict(package_dir: Path, args: argparse.Namespace) -> Result:
    from . import predicting

    facts, text = predicting.run(package_dir, args)
    return facts, text, EXIT_OK


def _embed(package_dir: Path, args: argparse.Namespace) -> Result:
    from . import text_command

    facts, text = text_command.embed(package_dir, args)
    return facts, text, EXIT_OK


_COMMANDS: dict[
    str,
    tuple[str, Callable[[argparse.ArgumentParser], None], Callable[[Path, argparse.Namespace], Result]],
] = {
    "info": ("show what is packaged, this host, and how it would run here", _add_nothing, _info),
    "verify": ("check every file's hash and replay the golden inputs", _add_nothing, _verify),
    "predict": ("run the model on images, texts or .npy arrays, whichever it takes", _add_predict, _predict),
    "embed": ("make vectors of inputs, for a model whose outputs are embeddings", _add_embed, _embed),
    "bench": ("measure throughput and latency on this host", _add_bench, _bench),
    "tune": ("find the best threads, instances and batch size on this host and remember them", _add_tune, _tune),
    "plan": (
        "say which setting, or how many hosts, carry a rate of requests within a latency bound",
        _add_plan,
        _plan,
    ),
    "batch": ("run over a directory or Parquet files, here or on a Ray cluster, and write Parquet", _add_batch, _batch),
    "stream": ("feed a sequence chunk by chunk, and write a line of JSON for each", _add_stream, _stream),
    "export": ("write the model for programs in C and C++, which need no Python", _add_export, _export),
    "serve": ("answer requests over HTTP and gRPC, under a promise of latency", _add_serve, _serve),
}
"""Name -> what the command does, how its arguments are added, how it runs."""
