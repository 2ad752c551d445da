"""``stream``: feeds a sequence to the model chunk by chunk, and writes its outputs as one line of JSON a chunk."""

from __future__ import annotations

import argparse
import json
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from .chunks import RAW, STDIN, Chunks
from .errors import InputError
from .items import ARCHIVE, read_archive
from .manifest import read_manifest
from .output import flush, say, tell
from .plain import to_plain
from .signature import signature_of
from .stream import NO_STATE
from .writing import whole_file


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    from .bench.options import positive_int

    parser.add_argument(
        "source",
        nargs="?",
        default=STDIN,
        metavar="FILE",
        help="raw values, a .wav file of one channel, an .npy array of chunks, or an .npz of all inputs by name "
        "(default: - for raw values on stdin)",
    )
    parser.add_argument(
        "--raw",
        choices=RAW,
        help="what raw values are, little-endian; int16 becomes float32 from -1 to 1 (default: as the input is)",
    )
    parser.add_argument(
        "--pad", action="store_true", help="fill the last chunk with zeros; otherwise a part of one is left out"
    )
    parser.add_argument("--state", type=Path, metavar="FILE.npz", help="go on from the state in a file")
    parser.add_argument("--save-state", type=Path, metavar="FILE.npz", help="write the state after the last chunk")
    parser.add_argument("--threads", type=positive_int, metavar="N", help="threads of the model")


def run(package_dir: Path, args: argparse.Namespace) -> tuple[dict[str, Any], str]:
    """Write a line for each chunk, or with ``--json`` return them all. The text is empty. Raises InputError."""
    signature = signature_of(read_manifest(package_dir))
    if not signature.states:
        raise InputError(NO_STATE)
    states = {spec.name for spec, _ in signature.states}
    specs = [each for each in signature.inputs if each.name not in states]
    chunks = Chunks(specs, args.source, args.raw, pad=args.pad)
    for option, path in (("--state", args.state), ("--save-state", args.save_state)):
        if path is not None and path.suffix != ARCHIVE:
            raise InputError(f"{option}: {path} must end in {ARCHIVE}")
    if args.save_state is not None and not args.save_state.parent.is_dir():
        raise InputError(f"--save-state: the directory {args.save_state.parent} does not exist")
    state = None if args.state is None else read_archive(args.state)
    from .runner import Runner

    kept, count = [], 0
    with Runner(package_dir, threads=args.threads, instances=1) as runner:
        stream = runner.stream(state)
        for chunk in chunks:
            found = stream(chunk)
            named = found if isinstance(found, dict) else {_only_output(signature): found}
            row = {"step": count, **{name: values[0].tolist() for name, values in named.items()}}
            count += 1
            if args.json:
                kept.append(row)
            else:
                say(sys.stdout, json.dumps(to_plain(row), allow_nan=False))
                flush(sys.stdout)
        if not count:
            raise InputError(f"{'stdin' if args.source == STDIN else args.source} holds no whole chunk")
        if args.save_state is not None:
            _write_state(args.save_state, stream.state)
        facts = {
            "name": runner.manifest.name,
            "version": runner.manifest.version,
            "random_weights": runner.manifest.random_weights,
            "count": count,
            "left_out": chunks.left_out,
            "steps": kept,
        }
    if not args.json and chunks.left_out:
        tell(f"the last {chunks.left_out} values fill no chunk and are left out; --pad fills it with zeros")
    return facts, ""


def _only_output(signature: Any) -> str:
    states = {output.name for _, output in signature.states}
    return next(str(each.name) for each in signature.outputs if each.name not in states)


def _write_state(path: Path, state: dict[str, Any]) -> None:
    """Write arrays by name, the whole file or none. ``np.savez`` takes no array of the name ``file``."""
    try:
        with whole_file(path) as whole, zipfile.ZipFile(whole, "w") as archive:
            for name, value in state.items():
                with archive.open(f"{name}.npy", "w") as file:
                    np.lib.format.write_array(file, value, allow_pickle=False)
    except OSError as error:
        raise InputError(f"--save-state: cannot write {path}: {error.strerror or error}") from error
