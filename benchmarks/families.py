"""Run families of networks with random weights through every stage, and write docs/explanation/families.md.

``python benchmarks/families.py`` measures the architectures that have no whole row yet; names measure those anew. The
rows are kept one by one in benchmarks/results/families/ISA.jsonl, so the script can be stopped and started again.
``--table`` writes the page alone. Images are synthetic and mostly small: what the table shows is that every structure
has kernels, and that its error against FP32 is that of rounding.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import torch
from family.architectures import ARCHITECTURES
from family.measure import SAMPLES, TORCH_ENGINES, Row, measure
from family.page import page

from cpupack.runtime.host.cpu import detect_isa

PAGE = Path(__file__).parents[1] / "docs" / "explanation" / "families.md"
QUICK_SAMPLES = 8
RESULTS = Path(__file__).parent / "results" / "families"


def main() -> None:
    """Measure what is asked for, a row at a time, then write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help="architectures to measure anew")
    parser.add_argument("--rows", type=Path, help="where the rows are kept")
    parser.add_argument("--most", type=int, metavar="N", help="stop after so many architectures")
    parser.add_argument("--quick", action="store_true", help="the native engine alone, few samples, and no speed")
    parser.add_argument("--table", action="store_true", help="write the page from the rows that are there")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    path = arguments.rows or RESULTS / f"{detect_isa()}.jsonl"
    rows = read(path)
    known = {each.name: each for each in ARCHITECTURES}
    if unknown := sorted(set(arguments.names) - set(known)):
        parser.error(f"no such architecture: {', '.join(unknown)}")
    wanted = [known[name] for name in arguments.names]
    if not arguments.names and not arguments.table:
        wanted = [each for each in ARCHITECTURES if each.name not in rows or is_quick(rows[each.name])]
    for each in wanted[: arguments.most]:
        rows[each.name] = measure(
            each,
            samples=QUICK_SAMPLES if arguments.quick else SAMPLES,
            torch_engines=() if arguments.quick else TORCH_ENGINES,
            speed=not arguments.quick,
        )
        sys.stdout.write(json.dumps(rows[each.name]) + "\n")
        sys.stdout.flush()
        write(path, rows)
    if not arguments.quick:
        PAGE.write_text(page(list(rows.values())), encoding="utf-8")


def is_quick(row: Row) -> bool:
    """Whether a row was measured with ``--quick``, so that it has no speed."""
    return (
        "seconds" in row
        and "native_ms" not in row
        and not {"native_refused", "native_crashed", "speed_crashed"} & set(row)
    )


def read(path: Path) -> dict[str, Row]:
    """Return the rows that are kept at ``path``, by name."""
    if not path.exists():
        return {}
    return {row["name"]: row for row in map(json.loads, path.read_text("utf-8").splitlines())}


def write(path: Path, rows: dict[str, Row]) -> None:
    """Keep ``rows`` at ``path``, in the order of the table."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    ordered = [rows[each.name] for each in ARCHITECTURES if each.name in rows]
    part.write_text("".join(json.dumps(row) + "\n" for row in ordered), encoding="utf-8")
    part.replace(path)


if __name__ == "__main__":
    main()
