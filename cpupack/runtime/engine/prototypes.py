"""The types of the kernels' C functions, all in one place. The headers in ``kernels/`` are the source."""

from __future__ import annotations

import ctypes
from ctypes import c_char_p, c_int, c_int32, c_int64, c_void_p
from typing import Any


class Piece(ctypes.Structure):
    """Some samples of a call, and the program for their length (``struct cpupack_piece``)."""

    _fields_ = (("program", c_void_p), ("program_bytes", c_int64), ("batch", c_int64))


PROTOTYPES: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "cpupack_isa": (c_char_p, ()),
    "cpupack_error": (c_char_p, (c_int,)),
    "cpupack_set_threads": (None, (c_int,)),
    "cpupack_execute": (c_int, (c_void_p, c_int64, c_void_p, c_int, c_int64, c_void_p)),
    "cpupack_look": (c_int, (c_void_p, c_int64, c_void_p, c_int, c_int64, c_int, c_void_p)),
    "cpupack_profile": (c_int, (c_void_p, c_int64, c_void_p, c_int, c_int64, c_void_p, c_int, c_void_p)),
    "cpupack_new_session": (c_void_p, (c_int,)),
    "cpupack_close_session": (None, (c_void_p,)),
    "cpupack_end_session": (None, (c_void_p,)),
    "cpupack_run": (c_int, (c_void_p, c_void_p, c_int64, c_void_p, c_int, c_int, c_int64, c_void_p)),
    "cpupack_run_pieces": (c_int, (c_void_p, c_void_p, c_int64, c_void_p, c_void_p, c_int)),
    "cpupack_make_ready": (c_int, (c_void_p, c_void_p, c_int64, c_int64)),
    "cpupack_try_run": (c_int, (c_void_p, c_void_p, c_int64, c_void_p, c_int, c_int, c_int64, c_void_p)),
    "cpupack_session_bytes": (c_int64, (c_void_p,)),
    "cpupack_prepared_bytes": (c_int64, (c_void_p,)),
    "cpupack_resize_bytes": (c_int64, (c_int32, c_int32, c_int32, c_int64)),
    "cpupack_resize": (c_int, (c_void_p, c_void_p, c_void_p, c_void_p, c_void_p)),
    "cpupack_torch_symbol": (c_char_p, (c_int,)),
    "cpupack_register": (c_int, (c_void_p,)),
}
"""Name -> (type of the result, types of the arguments); every pointer but text is a ``c_void_p``."""


def declare(library: ctypes.CDLL) -> None:
    """Set the types of all functions of the kernels' library. Raises AttributeError for one that it does not have."""
    for name, (result, arguments) in PROTOTYPES.items():
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
