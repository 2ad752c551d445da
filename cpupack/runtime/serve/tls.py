"""The certificate and the key of the server, for HTTP."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Any

from ..errors import InputError


def tls_context(cert: Path, key: Path) -> ssl.SSLContext:
    """Return what HTTP over TLS needs. Raises InputError, which names the file that is wrong and how."""
    for option, path in (("--tls-cert", cert), ("--tls-key", key)):
        try:
            text = path.read_bytes()
        except OSError as error:
            raise InputError(f"{option} {path}: {error.strerror}; name a file in PEM") from error
        what = b"CERTIFICATE-----" if option == "--tls-cert" else b"PRIVATE KEY-----"
        if what not in text:
            raise InputError(f"{option} {path} has no line -----BEGIN {what.decode()}; name a file in PEM")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_cert_chain(cert, key, password=_no_password)
    except _EncryptedError:
        raise InputError(
            f"--tls-key {key} is encrypted; a server has nobody to ask: openssl pkey -in {key} -out OTHER"
        ) from None
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            raise InputError(f"--tls-key {key} is not the key of the certificate {cert}") from error
        raise InputError(f"--tls-cert {cert} and --tls-key {key} cannot be used: {error.reason or error}") from error
    except OSError as error:
        raise InputError(f"--tls-cert {cert} and --tls-key {key} cannot be used: {error.strerror or error}") from error
    context.set_alpn_protocols(["http/1.1"])
    return context


class Certificate(ssl.SSLContext):
    """The context of a server whose certificate may be replaced: each new connection has the ``current`` one.

    Not ``load_cert_chain`` once more: that keeps a certificate whose key is of another kind, and still shows it.
    """

    current: ssl.SSLContext

    def __new__(cls, current: ssl.SSLContext) -> Certificate:
        """Make a context that wraps connections with ``current``."""
        found = super().__new__(cls, ssl.PROTOCOL_TLS_SERVER)
        found.current = current
        return found

    def __init__(self, current: ssl.SSLContext) -> None:
        """See ``__new__``: the class of Python has all that it does there."""

    def wrap_bio(self, *arguments: Any, **options: Any) -> ssl.SSLObject:
        """Return what a new connection talks through."""
        return self.current.wrap_bio(*arguments, **options)


class _EncryptedError(Exception):
    """OpenSSL asks for a password."""


def _no_password() -> str:
    raise _EncryptedError
