"""Finds the weights of a module in the checkpoints of training tools, and says which weights were taken.

Weights are taken only if every name and shape of the module is there. Prefixes and suffixes are removed from names only
if the result is exactly the module's own names.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from cpupack.errors import ModelError
from cpupack.model.checkpoint_tables import AVERAGED, WRAPPERS, Table, joined, looser, tables_of, words
from cpupack.model.fit import Fit, Own, dtypes_converted, fit, is_extra, listed, problem_lines
from cpupack.model.weight_files import SAVE_TENSORS, describe_raw, shard_hint

PLAIN_KEYS = frozenset(
    {
        "state_dict",
        "model_state_dict",
        "model_state",
        "model",
        "net",
        "network",
        "net_state_dict",
        "weights",
        "params",
        "module",
        "model_weights",
        "state",
        "online_model",
        "current_model_state",
    }
)
"""Keys under which checkpoints keep a state dict."""
_PREFIXES = frozenset({"module", "model", "net", "network", "_model", "online_model"})
"""Attributes that hold the model. Tensors next to them belong to the training (a loss, a metric)."""
_COUNT = "n_averaged"
"""What torch's AveragedModel counts beside its weights."""


@dataclass(frozen=True)
class Taken:
    """The weights to load. ``notes`` say what was recognised; ``warnings`` are what the user must not miss."""

    state: dict[str, torch.Tensor]
    notes: tuple[str, ...]
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class _Offer:
    """Tensors of a table under one prefix, and how they fit. ``added``: the module has the prefix, the file has not."""

    table: Table
    prefix: str
    fit: Fit
    left: tuple[str, ...] = ()
    added: bool = False
    borrowed: tuple[str, ...] = ()
    averaged: bool = False

    @property
    def where(self) -> str:
        path = ".".join(self.table.path)
        return (f"'{path}'" if path else "the file itself") + (f" under '{self.prefix}'" if self.prefix else "")

    @property
    def known(self) -> bool:
        keys = [key for key in self.table.path if not words(key) & AVERAGED]
        return all(key in PLAIN_KEYS for key in keys)


def take(raw: Any, module: nn.Module, choice: str | None, path: Path, *, optional: tuple[str, ...] = ()) -> Taken:
    """Find the weights of ``module`` in ``raw``, the contents of a file. The module is not changed.

    ``choice`` is ``[model] state``: ``plain``, ``ema`` or None (plain if there are plain weights). Names that start
    with one of ``optional`` may be missing. Raises ModelError when no weights fit by every name and shape, or when
    several different ones do.
    """
    if kept := [name for name, value in module.state_dict().items() if not isinstance(value, torch.Tensor)]:
        raise ModelError(
            f"[model] weights: the module's state has values that are not tensors ({listed(kept)})",
            hint='load it in the factory, with weights = "factory"',
        )
    own = Own(module)
    tables = list(tables_of(raw, own))
    if not tables:
        raise _no_weights(raw, path)
    empty = [name for table in tables for name, value in table.tensors.items() if value.is_meta]
    if empty:
        raise ModelError(
            f"[model] weights: {path}: {listed(empty)} have a shape and no values (they are on torch's device meta)",
            hint="load the weights before the model is saved",
        )
    offers = [offer for table in tables for offer in _offers(table, own, raw, optional)]
    good = [offer for offer in offers if offer.fit.loads]
    good += _completed(offers, good, own)
    if not good:
        other = [*looser(tables, own), *joined(raw, own)]
        good = [offer for table in other for offer in _offers(table, own, raw, optional) if offer.fit.loads]
    if not good:
        good = list(_renamed(module, offers))
    if not good:
        raise _misfit(min(offers, key=lambda each: (each.fit.faults, not each.known)), own, path)
    plain = _one([offer for offer in good if not offer.averaged], path)
    averaged = _one([offer for offer in good if offer.averaged], path)
    if choice == "ema" and averaged is None:
        raise ModelError(
            f'[model] state = "ema": {path} has no averaged weights that fit, only {_known(plain)}',
            hint='leave state out, or set it to "plain"',
        )
    if choice == "plain" and plain is None:
        raise ModelError(
            f'[model] state = "plain": {path} has averaged weights only, in {_known(averaged)}',
            hint='leave state out, or set it to "ema"',
        )
    taken = averaged if choice == "ema" or plain is None else plain
    assert taken is not None
    warnings: tuple[str, ...] = ()
    if choice is None and plain is not None and averaged is not None:
        warnings = (
            f"{path.name} holds plain weights ({plain.where}) and averaged ones ({averaged.where}); the plain ones are "
            'used. Averaged weights are usually better: [model] state = "ema" uses them, state = "plain" keeps the '
            "plain ones without this warning",
        )
    others = [each for each in good if each is not taken]
    return Taken(taken.fit.state, tuple(_notes(taken, others, own, raw)), warnings)


# --- which tensors fit


def _offers(table: Table, own: Own, raw: Any, optional: tuple[str, ...]) -> Iterator[_Offer]:
    prefixes = {""}
    for name in table.tensors:
        parts = name.split(".")
        for cut in range(1, len(parts)):
            if ".".join(parts[cut:]) in own.state:
                prefixes.add(".".join(parts[:cut]) + ".")
    for prefix in sorted(prefixes, key=lambda each: (each.count("."), each)):
        inside = _under(prefix, table.tensors)
        dropped = tuple(name for name in inside if optional and name.startswith(optional))
        inside = {name: value for name, value in inside.items() if name not in dropped}
        outside = [name for name in table.tensors if not name.startswith(prefix) and not is_extra(name)]
        found = fit(inside, own)
        parts = [*prefix.split(".")[:-1], *table.path]
        averaged = any(words(part) & AVERAGED for part in parts) or _COUNT in table.tensors
        if isinstance(raw, Mapping) and "current_model_state" in raw and table.path == ("state_dict",):
            averaged = (
                True  # Lightning's WeightAveraging stores the average there, and the plain weights under another key
            )
        if prefix and outside and found.loads and not _may_stand_alone(prefix, raw):
            found = replace(found, unexpected=tuple(outside))
        extras = tuple(name for name in table.tensors if not name.startswith(prefix) and is_extra(name))
        found = replace(found, extras=(*found.extras, *extras))
        yield _Offer(table, prefix, found, (*dropped, *(outside if prefix else ())), averaged=averaged)
    yield from _wrapped(table, own)


def _may_stand_alone(prefix: str, raw: Any) -> bool:
    """Whether tensors outside a prefix belong to the training, and not to a larger model."""
    parts = prefix.split(".")[:-1]
    if all(part in _PREFIXES or words(part) & AVERAGED for part in parts):
        return True
    return _is_lightning(raw) and len(parts) == 1


def _is_lightning(raw: Any) -> bool:
    return isinstance(raw, Mapping) and "pytorch-lightning_version" in raw


def _wrapped(table: Table, own: Own) -> Iterator[_Offer]:
    """Yield an offer for each prefix that all names of the module have and that the file does not have."""
    first = next(iter(own.state), "").split(".")
    for count in range(1, len(first)):
        prefix = ".".join(first[:count]) + "."
        if not all(name.startswith(prefix) for name in own.state):
            return
        found = fit({prefix + name: value for name, value in table.tensors.items()}, own)
        if found.loads:
            averaged = any(words(part) & AVERAGED for part in table.path)
            yield _Offer(table, prefix, found, added=True, averaged=averaged)


def _completed(offers: list[_Offer], good: list[_Offer], own: Own) -> Iterator[_Offer]:
    """Complete averages that have only parameters with the buffers of the plain weights in the same file."""
    plain = [offer for offer in good if not offer.averaged]
    if len(plain) != 1:
        return
    buffers = set(own.state) - set(own.parameters)
    for offer in offers:
        found = offer.fit
        lacks = found.missing and not found.unexpected and not found.differing and set(found.missing) <= buffers
        if offer.averaged and lacks and set(own.parameters) <= set(found.state) | {name for name, _ in found.tied}:
            rest = {name: value for name, value in plain[0].fit.state.items() if name not in found.state}
            whole = replace(found, state={**found.state, **rest}, missing=())
            yield replace(offer, fit=whole, borrowed=found.missing)


def _renamed(module: nn.Module, offers: list[_Offer]) -> Iterator[_Offer]:
    """Yield the first offer that the module can load through its own hooks, which may translate older names."""
    before = {name: value.clone() for name, value in module.state_dict().items() if isinstance(value, torch.Tensor)}
    for offer in offers:
        tensors = _under(offer.prefix, offer.table.tensors)
        if offer.added or offer.left or offer.fit.differing or not offer.fit.missing:
            continue
        try:
            result = module.load_state_dict(tensors, strict=False)
        except RuntimeError:  # another shape
            continue
        finally:
            module.load_state_dict(before, strict=False)
        if all(is_extra(name) for name in (*result.missing_keys, *result.unexpected_keys)):
            yield replace(offer, fit=replace(offer.fit, state=tensors, missing=(), unexpected=()))
            return


def _under(prefix: str, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def _one(offers: list[_Offer], path: Path) -> _Offer | None:
    """Return the offer to take. Usual keys come before others. Several offers that differ are an error."""
    best = [offer for offer in offers if offer.known] or offers
    for offer in best[1:]:
        first = best[0].fit.state
        same = first.keys() == offer.fit.state.keys() and all(
            torch.equal(value, offer.fit.state[name]) for name, value in first.items()
        )
        if not same:
            raise ModelError(
                f"[model] weights: {path} holds several sets of weights that fit the model, with different values: "
                + " and ".join(each.where for each in best),
                hint="save only the weights that you mean: torch.save(model.state_dict(), path)",
            )
    return best[0] if best else None


# --- notes and errors


def _known(offer: _Offer | None) -> str:
    return offer.where if offer is not None else "none"


def _notes(offer: _Offer, others: list[_Offer], own: Own, raw: Any) -> Iterator[str]:
    parts = []
    if offer.table.path:
        kind = "a Lightning checkpoint" if _is_lightning(raw) else "the checkpoint"
        parts.append(f"took '{'.'.join(offer.table.path)}' of {kind}")
    if offer.averaged:
        parts.append("these are averaged weights (EMA or SWA)")
    removed = [f"{WRAPPERS.get(part, 'DistributedDataParallel')}'s '{part}'" for part in offer.table.removed]
    if offer.prefix:
        parts.append(f"{'added' if offer.added else 'removed'} the prefix '{offer.prefix}'")
    if removed:
        parts.append(f"removed {' and '.join(removed)} from names")
    covered = tuple(each.prefix for each in others if each.table is offer.table and each.prefix)
    left = [name for name in offer.left if not name.startswith(covered)] if covered else list(offer.left)
    if left:
        parts.append(f"left out {listed(left)}, which the model does not have")
    if extras := [name for name in offer.fit.extras if not name.endswith("num_batches_tracked")]:
        parts.append(f"left out {listed(extras)}, which are not weights of the model")
    if offer.borrowed:
        parts.append(f"took {listed(offer.borrowed)} from the plain weights, because they have no average")
    if offer.fit.tied:
        parts.append("tied: " + listed(f"{name} is {other}" for name, other in offer.fit.tied))
    parts += [f"converted {found} to {wanted}" for found, wanted in dtypes_converted(offer.fit, own)]
    if parts:
        yield "weights: " + "; ".join(parts)


def _no_weights(raw: Any, path: Path) -> ModelError:
    return ModelError(
        f"[model] weights: {path} is not a state dict: it holds {describe_raw(raw)}",
        hint=SAVE_TENSORS,
    )


def _misfit(offer: _Offer, own: Own, path: Path) -> ModelError:
    flat = [name for name in offer.table.tensors if name.rpartition(".")[2].lstrip("_") == "flat_param"]
    if flat:
        return ModelError(
            f"[model] weights: {path} holds FSDP's flattened parameters ({listed(flat)}), which have no names",
            hint="save a full state dict: FSDP.state_dict_type(model, StateDictType.FULL_STATE_DICT)",
        )
    tensors = {name.removeprefix(offer.prefix): value for name, value in offer.table.tensors.items()}
    where = "" if offer.where == "the file itself" else f" ({offer.where})"
    return ModelError(
        f"[model] weights: {path}{where} does not fit the model:\n" + "\n".join(problem_lines(offer.fit, tensors, own)),
        hint=shard_hint(path)
        or "is it a checkpoint of this architecture, and are [model] kwargs (num_classes, ...) right?",
    )
