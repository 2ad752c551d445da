"""DSSE: the envelope around a signed statement (github.com/secure-systems-lab/dsse, protocol.md and envelope.md)."""

from __future__ import annotations

import base64
import binascii
import json
from typing import TYPE_CHECKING, Any

from cpupack.signing.keys import is_signature, key_id

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

PAYLOAD_TYPE = "application/vnd.in-toto+json"


def sealed(statement: dict[str, Any], key: Ed25519PrivateKey) -> str:
    """Return the envelope as one line of JSON."""
    payload = json.dumps(statement, sort_keys=True, separators=(",", ":")).encode()
    signature = key.sign(_encoded(PAYLOAD_TYPE, payload))
    envelope = {
        "payloadType": PAYLOAD_TYPE,
        "payload": base64.b64encode(payload).decode(),
        "signatures": [{"keyid": key_id(key.public_key()), "sig": base64.b64encode(signature).decode()}],
    }
    return json.dumps(envelope, sort_keys=True) + "\n"


def opened(text: str, key: Ed25519PublicKey) -> dict[str, Any]:
    """Return the statement in an envelope that ``key`` has signed. Raises ValueError with the reason why not."""
    try:
        envelope = json.loads(text)
        payload_type, signatures = envelope["payloadType"], envelope["signatures"]
        payload = base64.b64decode(envelope["payload"], validate=True)
        found = [base64.b64decode(each["sig"], validate=True) for each in signatures]
    except (ValueError, binascii.Error, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"it is no DSSE envelope ({type(error).__name__}: {error})") from error
    if payload_type != PAYLOAD_TYPE:
        raise ValueError(f"it holds {payload_type!r}, not {PAYLOAD_TYPE}")
    if not any(is_signature(key, each, _encoded(payload_type, payload)) for each in found):
        raise ValueError("its signature is not of this key, or it was changed")
    try:
        statement = json.loads(payload)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"what it holds is not JSON: {error}") from error
    if isinstance(statement, dict):
        return statement
    raise ValueError("what it holds is no statement")


def _encoded(payload_type: str, payload: bytes) -> bytes:
    """Return what is signed: DSSE's pre-authentication encoding."""
    kind = payload_type.encode()
    return b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(payload), payload)
