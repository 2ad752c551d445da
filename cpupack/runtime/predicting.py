"""``predict``: runs the model on files, and shows, prints or draws the results."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .errors import InputError
from .manifest import Manifest, read_manifest
from .tasks.answers import draws_nothing, task_of
from .top_k import shown_classes
from .writing import whole_file


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    from .bench.options import positive_int

    parser.add_argument(
        "inputs",
        nargs="*",
        metavar="INPUT",
        help="an image, an .npy array, an .npz of all inputs by name, or for a model that takes text a text",
    )
    parser.add_argument(
        "--input",
        action="append",
        default=[],
        dest="named",
        metavar="NAME=VALUE",
        help="one input of one sample, for a model with several: a file, a number, or a list like [1,2]; repeat it",
    )
    parser.add_argument(
        "--file",
        metavar="FILE",
        help='texts of a file, one a line; of a .jsonl file objects with "text" and maybe "text_pair"; - is stdin',
    )
    parser.add_argument("--top-k", type=positive_int, metavar="K", help="classes to show (default: 5)")
    parser.add_argument(
        "--save",
        type=Path,
        metavar="PATH",
        help="draw the result over the image: an image file, or for several inputs a directory",
    )
    parser.add_argument("--batch-size", type=positive_int, metavar="N", help="images a call (default: the plan's)")
    parser.add_argument("--threads", type=positive_int, metavar="N", help="threads of one instance")
    parser.add_argument("--instances", type=positive_int, metavar="N", help="copies of the model run in parallel")


def run(package_dir: Path, args: argparse.Namespace) -> tuple[dict[str, Any], str]:
    """Return the results as JSON-ready values and as text. Raises InputError."""
    from .images.paths import check_path
    from .items import check_files, parsed_values
    from .runner import Runner
    from .signature import signature_of
    from .text.spec import spec_of
    from .text_command import run as text_run

    manifest = read_manifest(package_dir)
    takes_text = spec_of(manifest) is not None
    if takes_text and (args.file is not None or not args.named or _names_text(args.named)):
        return text_run(package_dir, args)
    if args.file is not None:
        raise InputError("--file is for texts, and this model takes none")
    if not args.inputs and not args.named:
        raise InputError("the following arguments are required: FILE, or --input NAME=VALUE for each input")
    if args.inputs and args.named:
        raise InputError("name files, or the inputs of one sample with --input NAME=VALUE, and not both")
    check_files(signature_of(manifest), args.inputs)
    for name in args.inputs:  # before torch is imported and the model loaded
        check_path(name)
    names, items = list(args.inputs), list(args.inputs)
    if args.named:
        names, items = [", ".join(args.named)], [parsed_values(signature_of(manifest), args.named)]
    top_k = shown_classes(args.top_k, task_of(manifest).kind)
    pictures = [None] * len(names)
    if args.save is not None:
        pictures = targets = _targets(args.save, names, manifest)
        _keep_inputs(targets, [*args.inputs, *(each.partition("=")[2] for each in args.named)])
    with Runner(package_dir, threads=args.threads, instances=args.instances, batch_size=args.batch_size) as runner:
        found = runner.predict(items, top_k=top_k)
        answers = runner.answers
        rows, texts = [], []
        for name, item, result, picture in zip(names, items, found, pictures, strict=True):
            saved: dict[str, str] = {} if picture is None else {"saved": str(picture)}
            if picture is not None:
                _save(answers.drawing(result, item), picture)
            rows.append({"input": name, **answers.facts(result), **saved})
            texts.append("\n".join([name, answers.text(result), *(f"  saved {each}" for each in saved.values())]))
        facts = {
            "name": runner.manifest.name,
            "version": runner.manifest.version,
            "random_weights": runner.manifest.random_weights,
            "task": answers.spec.kind,
            "predictions": rows,
        }
    return facts, "\n\n".join(texts)


def _names_text(named: Sequence[str]) -> bool:
    """Return whether --input gives a text by name, and no input of the model itself."""
    return any(each.partition("=")[0] in {"text", "text_pair"} for each in named)


def _targets(save: Path, inputs: Sequence[str], manifest: Manifest) -> list[Any]:
    """Return the file for each drawing. Raises InputError where one cannot be made, before the model runs."""
    task = task_of(manifest)
    if not task.draws:
        raise InputError(f"--save: {draws_nothing(task)}")
    takes_images = manifest.preprocess is not None or any(each.get("preprocess") for each in manifest.inputs)
    if not takes_images and not task.draws_alone:
        raise InputError("--save: this model takes arrays, and there is no image to draw over")
    if len(inputs) == 1 and not save.is_dir():
        return [_writable(save)]
    if not save.is_dir():
        raise InputError(f"--save: {save} is no directory; {len(inputs)} inputs need one that exists")
    targets = [save / f"{Path(name).stem}.png" for name in inputs]
    if len(set(targets)) < len(targets):
        twice = next(each for each in targets if targets.count(each) > 1)
        raise InputError(f"--save: several inputs would be {twice}; give them other names")
    return targets


def _keep_inputs(targets: Sequence[Path], inputs: Sequence[str]) -> None:
    """Raise InputError where a drawing would replace a file that is read."""
    for target in targets:
        for name in inputs:
            try:
                same = target.samefile(name)
            except (OSError, ValueError):  # one of them does not exist, or is no path
                continue
            if same:
                raise InputError(f"--save: the drawing would replace the input {name}; save it elsewhere")


def _writable(path: Path) -> Path:
    from PIL import Image

    Image.init()
    if Image.EXTENSION.get(path.suffix.lower()) not in Image.SAVE:
        raise InputError(f"--save: {path} has no ending of an image that Pillow writes, such as .png or .jpg")
    if not path.parent.is_dir():
        raise InputError(f"--save: the directory {path.parent} does not exist")
    return path


def _save(drawn: Any, path: Path) -> None:
    from PIL import Image

    try:
        with whole_file(path) as file:
            drawn.save(file, Image.EXTENSION[path.suffix.lower()])
    except (OSError, ValueError) as error:
        raise InputError(f"--save: cannot write {path}: {error}") from error
