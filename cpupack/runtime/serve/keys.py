"""The token and the certificate of the server: read at the start, and again at each SIGHUP."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Any

from ..errors import InputError
from .options import ServeOptions, check_token, read_token
from .tls import Certificate, tls_context


class Keys:
    """What lets clients in. ``token`` and ``tls`` are None where the options name none. Raises InputError."""

    def __init__(self, options: ServeOptions) -> None:
        self._options = options
        self.token = options.token
        self.tls: Certificate | None = None
        self.pair: tuple[bytes, bytes] | None = None
        """The key and the certificate, for gRPC."""
        if options.tls_cert is not None and options.tls_key is not None:
            context, self.pair = _read_pair(options.tls_cert, options.tls_key)
            self.tls = Certificate(context)

    def read_again(self) -> tuple[list[str], list[str]]:
        """Read all again. Return what was taken, and of what cannot be used, why; the one before stays then."""
        taken: list[str] = []
        errors: list[str] = []
        for what, read in (("the certificate", self._certificate_again), ("the token", self._token_again)):
            try:
                if read():
                    taken.append(what)
            except InputError as error:
                errors.append(f"{what} before is kept: {error}")
        return taken, errors

    def _certificate_again(self) -> bool:
        options = self._options
        if options.tls_cert is None or options.tls_key is None or self.tls is None:
            return False
        context, pair = _read_pair(options.tls_cert, options.tls_key)
        new = pair != self.pair
        self.tls.current, self.pair = context, pair
        return new

    def _token_again(self) -> bool:
        if self._options.token_file is None:
            return False
        token = read_token(self._options.token_file)
        check_token(token)
        new = token != self.token
        self.token = token
        return new


def grpc_credentials(keys: Keys) -> Any:
    """Return the credentials of gRPC's server, which asks at each new connection whether the certificate is new."""
    import grpc

    def configuration() -> Any:
        return grpc.ssl_server_certificate_configuration([keys.pair])

    used = [keys.pair]

    def newest() -> Any:  # on a thread of gRPC's; None is "as before"
        if used[0] == keys.pair:
            return None
        used[0] = keys.pair
        return configuration()

    return grpc.dynamic_ssl_server_credentials(configuration(), newest)


def _bytes_of(key: Path, cert: Path) -> tuple[bytes, bytes]:
    return (key.read_bytes() if key.is_file() else b""), (cert.read_bytes() if cert.is_file() else b"")


def _read_pair(cert: Path, key: Path) -> tuple[ssl.SSLContext, tuple[bytes, bytes]]:
    """Return the context for HTTP, and the files for gRPC. Raises InputError."""
    try:
        pair = _bytes_of(key, cert)
        context = tls_context(cert, key)
        same = pair == _bytes_of(key, cert)  # whoever replaces the files does so one after the other
    except OSError as error:
        raise InputError(f"--tls-cert {cert} and --tls-key {key}: {error.strerror}") from error
    if not same:
        raise InputError(f"--tls-cert {cert} and --tls-key {key} were changed while they were read; send SIGHUP again")
    return context, pair
