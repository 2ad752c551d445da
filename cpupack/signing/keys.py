"""Ed25519 keys in PEM files, as ``openssl genpkey -algorithm ed25519`` writes them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from cpupack.errors import UsageError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

_MOST_BYTES = 64 << 10
_MAKE = "openssl genpkey -algorithm ed25519 -out key.pem; openssl pkey -in key.pem -pubout -out key.pub"


def check_extra() -> None:
    """Raise UsageError where the extra ``sign`` is not installed."""
    try:
        import cryptography  # noqa: F401 - only whether it is there
    except ModuleNotFoundError as error:
        raise UsageError("signatures need the package cryptography", hint='pip install "cpupack[sign]"') from error


def private_key(path: Path, ask: Callable[[], str]) -> Ed25519PrivateKey:
    """Read a private key. ``ask`` returns the password of an encrypted one.

    Raises UsageError for a file that is no such key, and for a wrong password.
    """
    check_extra()
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    data = _read(path)
    password = ask().encode() if b"ENCRYPTED" in data else None
    try:
        key = load_pem_private_key(data, password)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        why = "the password is wrong, or it is damaged" if password is not None else "it is no private key in PEM"
        raise UsageError(f"--key {path} cannot be read: {why}", hint=f"to make a pair: {_MAKE}") from error
    if not isinstance(key, Ed25519PrivateKey):
        raise UsageError(f"--key {path} is not an Ed25519 key", hint=f"to make a pair: {_MAKE}")
    return key


def public_key(path: Path) -> Ed25519PublicKey:
    """Read a public key. Raises UsageError for a file that is none."""
    check_extra()
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    data = _read(path)
    if b"PRIVATE KEY" in data:
        raise UsageError(
            f"--key {path} is a private key, and verifying takes the public one",
            hint="openssl pkey -in key.pem -pubout -out key.pub; never hand out the private key",
        )
    try:
        key = load_pem_public_key(data)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise UsageError(f"--key {path} is no public key in PEM", hint=f"to make a pair: {_MAKE}") from error
    if not isinstance(key, Ed25519PublicKey):
        raise UsageError(f"--key {path} is not an Ed25519 key", hint=f"to make a pair: {_MAKE}")
    return key


def key_id(key: Ed25519PublicKey) -> str:
    """Return the SHA-256 of a public key (SubjectPublicKeyInfo, DER) as hex."""
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    return hashlib.sha256(key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).hexdigest()


def is_signature(key: Ed25519PublicKey, signature: bytes, message: bytes) -> bool:
    """Return whether ``signature`` is the key's over ``message``."""
    from cryptography.exceptions import InvalidSignature

    try:
        key.verify(signature, message)
    except InvalidSignature:
        return False
    return True


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(_MOST_BYTES)
    except OSError as error:
        raise UsageError(f"--key {path} cannot be read: {error.strerror or error}") from error
