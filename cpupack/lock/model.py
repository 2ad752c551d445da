"""The lock as a file: its tables, how it is read and how it is written."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import tomli
import tomli_w
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, Json, StringConstraints, ValidationError

from cpupack.errors import LockError
from cpupack.scratch import write_whole

_HEAD = """\
# Written by cpupack. `cpupack build --locked` builds the same bytes again, or says what has changed.
# `cpupack lock` writes this file anew. Keep it beside the recipe, under version control.
"""
Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Inputs(_Table):
    """All that a build reads and that may change its bytes.

    ``recipe`` maps each table of the recipe to the SHA-256 of its values; ``text`` is that of the whole file.
    ``versions`` has the packages that take part. ``host`` has what the last bits of FP32 outputs depend on.
    ``files`` maps every file, as the recipe names it, to its SHA-256. ``model`` and ``data`` have the SHA-256 of the
    loaded weights, of the captured graph, and of the samples as they are after preprocessing. ``fused`` are the chains.
    """

    recipe: dict[str, Sha256]
    versions: dict[str, str]
    host: dict[str, str | int]
    files: dict[str, Sha256]
    model: dict[str, Sha256]
    data: dict[str, Sha256]
    fused: list[list[str]]


class WheelLock(_Table):
    """What was decided and measured for the wheel of one CPU family.

    ``quantize`` is the ``[quantize]`` table that was used; a recovery may have changed the recipe's. ``plan`` is the
    tuned setting, for readers. ``contents`` maps the wheel's files to their SHA-256, the runner's code as one.
    ``measured`` has, as JSON, what another build would measure differently (``lock/measured.py``).
    """

    file: str
    sha256: Sha256
    engine: str
    isa: str = ""
    quantize: dict[str, Any]
    plan: dict[str, str | int | bool]
    contents: dict[str, Sha256]
    measured: dict[str, Json[Any]]


class Lock(_Table):
    """The whole file. ``source_date_epoch`` is the time of the files in the wheels, None for hatchling's own."""

    schema_: Annotated[Literal[1], BeforeValidator(lambda value: value if type(value) is int else None)] = Field(
        default=1, alias="schema"
    )
    source_date_epoch: int | None = None
    inputs: Inputs
    wheels: dict[str, WheelLock]

    def wheel(self, cpu: str, path: Path) -> WheelLock:
        """Return the part of one CPU family. Raises LockError where the lock has none."""
        if cpu not in self.wheels:
            raise LockError(
                f"{path} has no wheel for {cpu} (it has {', '.join(self.wheels) or 'none'})",
                hint=f"run `cpupack lock` with --target {cpu}, or build without --locked",
            )
        return self.wheels[cpu]


def lock_path(recipe: Path) -> Path:
    """Return the lock that belongs to a recipe: ``NAME.lock.toml`` beside ``NAME.toml``."""
    return recipe.with_name(f"{recipe.stem}.lock.toml")


def read_lock(path: Path) -> Lock:
    """Read a lock. Raises LockError where it is missing or damaged."""
    try:
        return Lock.model_validate(tomli.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError as error:
        raise LockError(f"{path} does not exist", hint="run `cpupack lock`, or build without --locked") from error
    except OSError as error:
        raise LockError(f"cannot read {path}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise LockError(f"{path} is not UTF-8: {error}", hint="run `cpupack lock` again") from error
    except (tomli.TOMLDecodeError, RecursionError) as error:
        raise LockError(f"{path} is not TOML: {error}", hint="run `cpupack lock` again") from error
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        raise LockError(f"{path} is damaged: {place}: {first['msg']}", hint="run `cpupack lock` again") from error


def write_lock(path: Path, lock: Lock) -> None:
    """Write a lock in one step. Raises OSError; a lock that was there is then what it was."""
    write_whole(path, (_HEAD + tomli_w.dumps(_plain(lock), multiline_strings=True)).encode())


def _plain(lock: Lock) -> dict[str, Any]:
    found: dict[str, Any] = lock.model_dump(by_alias=True, exclude_none=True, round_trip=True)
    return found
