"""Names of files as a lock has them: text, although a name on Linux may be any bytes.

Bytes that are no UTF-8 are written as Python's ``\\udcXX``, as the runner prints them too.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from cpupack.runtime.names import printable

_BYTE = re.compile(r"\\udc([89a-f][0-9a-f])")


def written(name: str) -> str:
    """Return the name of a file as text that UTF-8 can hold."""
    return printable(name)


def candidates(name: str) -> Iterator[str]:
    """Yield the names that a file of the lock may have: as it is written, and with the bytes that this stands for."""
    yield name
    found = _BYTE.sub(lambda match: chr(0xDC00 + int(match[1], 16)), name)
    if found != name:
        yield found
