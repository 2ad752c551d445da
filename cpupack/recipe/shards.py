"""Weights in several files: an index, ``NAME.safetensors.index.json``, names the shard of each tensor.

The libraries of Hugging Face write them. Nothing here imports torch.
"""

from __future__ import annotations

import json
from pathlib import Path

INDEX = ".index.json"
_MOST_BYTES = 64 << 20


class ShardError(Exception):
    """What is wrong with an index, in words that begin with its path."""


def read_index(path: Path) -> dict[str, Path]:
    """Return the file of each tensor, all beside the index. Raises ShardError for a damaged index and a lost shard."""
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise ShardError(f"{path} is larger than {_MOST_BYTES:,} bytes, which no index is")
        named = json.loads(path.read_bytes())["weight_map"].items()
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ShardError(f"{path} is no index of weights with a weight_map: {error}") from error
    found = {}
    for tensor, name in named:
        if not isinstance(name, str) or Path(name).name != name or name in {"", ".", ".."} or "\0" in name:
            raise ShardError(f"{path} names the shard {name!r}, which is no file beside it")
        found[tensor] = path.parent / name
    lost = sorted({shard.name for shard in found.values() if not shard.is_file()})
    if lost:
        raise ShardError(f"{path} names shards that are not beside it: {', '.join(lost[:3])}")
    return found


def files_of(path: Path) -> list[Path]:
    """Return all files of weights: the file itself, and the shards of an index. Raises ShardError."""
    return [path, *sorted(set(read_index(path).values()))] if path.name.endswith(INDEX) else [path]
