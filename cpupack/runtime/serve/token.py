"""Whether a client has the token that the server asks for. Pure."""

from __future__ import annotations

import hmac


def has_token(authorization: bytes, token: bytes) -> bool:
    """Return whether the header is ``Bearer`` and the token. The case of the word does not matter (RFC 9110, 11.1)."""
    scheme, _, given = authorization.partition(b" ")
    return scheme.lower() == b"bearer" and hmac.compare_digest(given.strip(b" \t"), token)
