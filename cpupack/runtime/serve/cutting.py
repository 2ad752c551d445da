"""Cuts a connection that belongs to a library. gRPC has no call that drops an answer which its client does not read."""

from __future__ import annotations

import os
import socket
import stat

from .addresses import client_of


def cut(peer: str) -> bool:
    """Shut down this process's connection to ``peer``, as gRPC writes it. Returns whether there is one.

    The library sees the end of the connection, as if the client had gone, and frees what it held for it.
    """
    wanted = client_of(peer)
    for name in os.listdir("/proc/self/fd"):  # noqa: PTH208 - paths of thousands would take longer
        try:
            if not stat.S_ISSOCK(os.fstat(int(name)).st_mode):
                continue
            number = os.dup(int(name))
        except OSError:  # it was closed just now
            continue
        # The family is not looked up: Linux says that of the address with the address.
        with socket.socket(socket.AF_INET6, socket.SOCK_STREAM, 0, number) as found:
            try:
                address = found.getpeername()
                if isinstance(address, tuple) and (address[0].removeprefix("::ffff:"), address[1]) == wanted:
                    found.shutdown(socket.SHUT_RDWR)
                    return True
            except OSError:  # it listens, or it has ended
                continue
    return False
