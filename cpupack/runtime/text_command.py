"""``predict`` and ``embed`` on texts: of the command line, of a file, or of stdin."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .errors import InputError
from .runner import Runner
from .text.spec import TEXT, TEXT_PAIR
from .text.texts import entries, read_lines, text_of, without_answers
from .top_k import shown_classes
from .writing import whole_file

_SHOWN = 60
_STDIN = "-"
Given = tuple[str, Any]
"""What an input is called, and the text or pair."""


def run(package_dir: Path, args: argparse.Namespace) -> tuple[dict[str, Any], str]:
    """Return the results for texts as JSON-ready values and as text. Raises InputError."""
    given = _given(args)
    if getattr(args, "save", None) is not None:
        raise InputError("--save: there is no image to draw over")
    with Runner(package_dir, threads=args.threads, instances=args.instances, batch_size=args.batch_size) as runner:
        assert runner.tokenizer is not None
        tokens = [runner.tokenizer.tokens(item, what) for what, item in given]
        found = runner.predict(tokens, top_k=shown_classes(args.top_k, runner.answers.spec.kind))
        rows, lines = [], []
        for (what, item), each, result in zip(given, tokens, found, strict=True):
            text = text_of(item, what)
            pair = {} if text.pair is None else {TEXT_PAIR: text.pair}
            rows.append({TEXT: text.text, **pair, **each.facts(), **runner.answers.facts(result)})
            cut = f"  cut off: {each.total} tokens, of which the model reads {len(each.ids)}"
            parts = [_shown(text.text, text.pair), runner.answers.text(result), *([cut] if each.truncated else [])]
            lines.append("\n".join(parts))
        facts = {
            "name": runner.manifest.name,
            "version": runner.manifest.version,
            "random_weights": runner.manifest.random_weights,
            "task": runner.answers.spec.kind,
            "predictions": rows,
        }
    return facts, "\n\n".join(lines)


def add_embed_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``embed``."""
    from .bench.options import positive_int

    parser.add_argument("inputs", nargs="*", metavar="INPUT", help="a text, or for a model of images an image")
    parser.add_argument(
        "--file", metavar="FILE", help='texts of a file, one a line; of a .jsonl file objects with "text"; - is stdin'
    )
    parser.add_argument("--out", type=Path, metavar="FILE.npy", help="write the vectors, float32 (n, dimensions)")
    parser.add_argument("--batch-size", type=positive_int, metavar="N", help="inputs a call (default: the plan's)")
    parser.add_argument("--threads", type=positive_int, metavar="N", help="threads of one instance")
    parser.add_argument("--instances", type=positive_int, metavar="N", help="copies of the model run in parallel")


def embed(package_dir: Path, args: argparse.Namespace) -> tuple[dict[str, Any], str]:
    """Return embeddings as JSON-ready values and as text, or write them to a file. Raises InputError."""
    if args.out is not None:
        _check_target(args.out)
    with Runner(package_dir, threads=args.threads, instances=args.instances, batch_size=args.batch_size) as runner:
        if runner.tokenizer is None:
            if args.file is not None:
                raise InputError("--file is for texts, and this model takes none")
            names, items, cut = list(args.inputs), list(args.inputs), 0
            if not items:
                raise InputError("the following arguments are required: INPUT")
        else:
            given = _given(args)
            names = [_shown(*_both(item, what)) for what, item in given]
            items = [runner.tokenizer.tokens(item, what) for what, item in given]
            cut = sum(each.truncated for each in items)
        vectors = runner.embed(items)
        facts = {
            "name": runner.manifest.name,
            "version": runner.manifest.version,
            "random_weights": runner.manifest.random_weights,
            "count": len(vectors),
            "dimensions": int(vectors.shape[1]),
            "truncated": cut,
        }
        told = f"{len(vectors)} vectors of {vectors.shape[1]} dimensions"
        told += f"; {cut} texts are cut off" if cut else ""
        if args.out is not None:
            _write(args.out, vectors)
            return {**facts, "saved": str(args.out)}, f"{told}, in {args.out}"
        rows = [" ".join(f"{value:.6g}" for value in vector) for vector in vectors.tolist()]
        text = "\n".join(f"{name}\n{row}" for name, row in zip(names, rows, strict=True))
        return {**facts, "embeddings": vectors.tolist()}, text


def _check_target(path: Path) -> None:
    if path.suffix != ".npy":
        raise InputError(f"--out: {path} must end in .npy")
    if not path.parent.is_dir():
        raise InputError(f"--out: the directory {path.parent} does not exist")


def _write(path: Path, vectors: Any) -> None:
    try:
        with whole_file(path) as file:
            np.save(file, vectors, allow_pickle=False)
    except OSError as error:
        raise InputError(f"--out: cannot write {path}: {error}") from error


def _given(args: argparse.Namespace) -> list[Given]:
    """Return the texts that a command line names. Raises InputError."""
    named: Sequence[str] = getattr(args, "named", [])
    ways = [bool(args.inputs), args.file is not None, bool(named)]
    if sum(ways) != 1:
        raise InputError(
            "give texts, or --file FILE, or a pair with --input text=... --input text_pair=...; one way at a time"
        )
    if named:
        return [("the text", _pair(named))]
    if args.file is not None:
        return _of_file(args.file)
    for text in args.inputs:
        if _is_file(text):
            raise InputError(f"{text} is a file, and would be read as a text; use --file {text}")
    return [(f"text {number}", text) for number, text in enumerate(args.inputs)]


def _is_file(text: str) -> bool:
    try:
        return len(text) < 4096 and Path(text).is_file()
    except (OSError, ValueError):
        return False


def _pair(named: Sequence[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for each in named:
        name, sign, value = each.partition("=")
        if not sign or name not in {TEXT, TEXT_PAIR} or name in found:
            raise InputError(f"--input {each}: must be {TEXT}=... or {TEXT_PAIR}=..., each once")
        found[name] = value
    return found


def _of_file(name: str) -> list[Given]:
    if name == _STDIN and sys.stdin is None:
        raise InputError("stdin is closed")
    found = (
        list(entries(sys.stdin.buffer, "stdin", as_json=False, blank=True))
        if name == _STDIN
        else read_lines(Path(name), blank=True)
    )
    if not found:
        raise InputError(f"{'stdin' if name == _STDIN else name} holds no text")
    return [(where, without_answers(item)) for where, item in found]


def _both(item: Any, what: str) -> tuple[str, str | None]:
    text = text_of(item, what)
    return text.text, text.pair


def _shown(text: str, pair: str | None) -> str:
    one = text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
    return one if pair is None else f"{one} | {_shown(pair, None)}"
