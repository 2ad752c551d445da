"""Packs what calibration found into an entry of the cache, and takes it out again."""

from __future__ import annotations

import dataclasses
from typing import Any

from cpupack.artifacts import CalibratedModel, FusedModel, RecurrentSqnr, Samples
from cpupack.cache.store import Entry, tensor_of
from cpupack.statistics import ActivationStats

_PARTS = tuple(each.name for each in dataclasses.fields(ActivationStats) if each.name not in {"bin_width", "chosen"})


def pack_calibration(made: CalibratedModel) -> Entry:
    """Return the statistics, and what was measured of recurrent and linear layers, as an entry."""
    tensors, names = {}, list(made.stats)
    for number, stats in enumerate(made.stats.values()):
        arrays = {part: getattr(stats, part) for part in _PARTS}
        tensors.update({f"{number} {part}": tensor_of(each) for part, each in arrays.items() if each is not None})
    widths = [float(stats.bin_width).hex() for stats in made.stats.values()]
    tensors |= {f"divisor {name}": each for name, each in made.divisors.items()}
    left = {name: [db.hex() for db in dataclasses.astuple(each)] for name, each in made.recurrent_sqnr_db.items()}
    kinds = list({id(each): each for each in made.rows.values()}.values())
    tensors |= {f"rows {number}": each for number, each in enumerate(kinds)}
    places = {id(each): number for number, each in enumerate(kinds)}
    rows = {name: places[id(each)] for name, each in made.rows.items()}
    return Entry(tensors, {"names": names, "widths": widths, "recurrent_sqnr_db": left, "rows": rows})


def unpack_calibration(entry: Entry, fused: FusedModel, samples: Samples) -> CalibratedModel:
    """Return what ``pack_calibration`` packed, for the fused model and the samples that it is of."""
    stats = {}
    for number, (name, width) in enumerate(zip(entry.facts["names"], entry.facts["widths"], strict=True)):
        tensors = {part: entry.tensors.get(f"{number} {part}") for part in _PARTS}
        arrays: dict[str, Any] = {part: None if each is None else each.numpy() for part, each in tensors.items()}
        stats[name] = ActivationStats(bin_width=float.fromhex(width), **arrays)
    left = {name: RecurrentSqnr(*map(float.fromhex, each)) for name, each in entry.facts["recurrent_sqnr_db"].items()}
    divisors = {
        name.removeprefix("divisor "): each for name, each in entry.tensors.items() if name.startswith("divisor ")
    }
    rows = {name: entry.tensors[f"rows {number}"] for name, number in entry.facts["rows"].items()}
    return CalibratedModel(fused, stats, len(samples), samples.origin, left, divisors, rows)
