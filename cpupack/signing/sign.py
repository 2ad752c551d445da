"""Signs a wheel and the statement about it, and checks both.

``WHEEL.sig`` is the raw Ed25519 signature (RFC 8032) over the bytes of the wheel, 64 bytes, which openssl verifies too.
``WHEEL.intoto.jsonl`` is the provenance statement in an envelope that is signed with the same key.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cpupack.errors import UsageError, VerificationError
from cpupack.scratch import write_whole
from cpupack.signing.envelope import opened, sealed
from cpupack.signing.keys import is_signature, key_id, private_key, public_key
from cpupack.signing.statement import PREDICATE, STATEMENT, make_statement
from cpupack.wheel.verify import verify_wheel

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

_MOST_BYTES = 16 << 20
"""Of a statement: a lock with a hundred thousand files takes less."""


@dataclass(frozen=True)
class Signed:
    """A signature that holds. ``statement`` is None where there is no provenance beside the wheel."""

    wheel: Path
    sha256: str
    key_id: str
    statement: dict[str, Any] | None


def signature_path(wheel: Path) -> Path:
    """Return where the signature of a wheel is: ``WHEEL.sig``."""
    return wheel.with_name(f"{wheel.name}.sig")


def provenance_path(wheel: Path) -> Path:
    """Return where the provenance of a wheel is: ``WHEEL.intoto.jsonl``."""
    return wheel.with_name(f"{wheel.name}.intoto.jsonl")


def sign_wheel(wheel: Path, key_path: Path, ask: Callable[[], str], *, lock: Path | None, builder: str) -> Signed:
    """Verify a wheel, then write its signature and its provenance beside it.

    ``ask`` returns the password of an encrypted key. ``lock`` is that of the build, ``builder`` a URI that says who
    built it. Raises UsageError for a key, wheel or lock that cannot be used, VerificationError for a wheel that is not
    as it was built.
    """
    key = private_key(key_path, ask)
    found = verify_wheel(wheel)
    if found.problems:
        listed = "\n".join(f"  {problem}" for problem in found.problems[:5])
        raise VerificationError(f"{wheel} is not as it was built, so it is not signed:\n{listed}")
    data = _read(wheel)
    sha256 = hashlib.sha256(data).hexdigest()
    statement = make_statement(wheel, sha256, found.inspection.manifest, lock, builder)
    _write(signature_path(wheel), key.sign(data))
    _write(provenance_path(wheel), sealed(statement, key).encode())
    return Signed(wheel, sha256, key_id(key.public_key()), statement)


def verify_signature(
    wheel: Path, key_path: Path, *, signature: Path | None = None, needs_provenance: bool = False
) -> Signed:
    """Check the signature over a wheel's bytes, and its provenance where there is one. The wheel is not opened.

    Raises VerificationError where either does not hold, or is missing; UsageError for a file that cannot be read.
    """
    key = public_key(key_path)
    found = signature or signature_path(wheel)
    data = _read(wheel)
    if not found.is_file():
        raise VerificationError(f"{wheel} has no signature: {found} does not exist", hint="get it from who built it")
    if not is_signature(key, _read(found, 4096), data):
        raise VerificationError(
            f"the signature {found} is not that of {key_path} over {wheel}",
            hint="the wheel was changed, or another key signed it; do not install it",
        )
    sha256 = hashlib.sha256(data).hexdigest()
    path = provenance_path(wheel)
    if not path.is_file():
        if needs_provenance:
            raise VerificationError(f"{wheel} has no provenance: {path} does not exist")
        return Signed(wheel, sha256, key_id(key), None)
    return Signed(wheel, sha256, key_id(key), _statement(path, key, wheel, sha256))


def _statement(path: Path, key: Ed25519PublicKey, wheel: Path, sha256: str) -> dict[str, Any]:
    try:
        statement = opened(_read(path, _MOST_BYTES).decode("utf-8"), key)
    except ValueError as error:
        raise VerificationError(f"the provenance {path} does not hold: {error}") from error
    kinds, subjects = (statement.get("_type"), statement.get("predicateType")), statement.get("subject")
    if kinds != (STATEMENT, PREDICATE):
        raise VerificationError(f"the provenance {path} is a statement of another kind: {kinds}")
    wanted = {"name": wheel.name, "digest": {"sha256": sha256}}
    if not isinstance(subjects, list) or wanted not in subjects:
        raise VerificationError(f"the provenance {path} is about another wheel")
    return statement


def _read(path: Path, most: int = -1) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(most)
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror or error}") from error


def _write(path: Path, data: bytes) -> None:
    try:
        write_whole(path, data)
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror or error}") from error
