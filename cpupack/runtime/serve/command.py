"""``NAME serve``: starts the server, or prints a plan or a file for it. The extra ``serve`` brings what it needs."""

from __future__ import annotations

import argparse
import asyncio
import importlib
import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..errors import HostError, InputError
from ..host.limits import system_fault
from ..manifest import read_manifest
from .memory import keep_memory
from .options import ServeOptions, from_arguments

Say = Callable[[str], None]


def run(package_dir: Path, args: argparse.Namespace, say: Say) -> tuple[dict[str, Any], str]:
    """Do what ``args`` ask for and return it as JSON and as text; ``say`` gets lines while it serves.

    Raises InputError and HostError, for example when the extra is not installed.
    """
    options = from_arguments(args)
    manifest = read_manifest(package_dir)
    if args.plan and args.emit:
        raise InputError("--plan and --emit: choose one")
    if args.emit:
        from .emit import emit

        text = emit(args.emit, manifest, args)
        return {"kind": args.emit, "text": text}, text.rstrip("\n")
    if args.plan:
        from . import plan_command

        return plan_command.run(package_dir, options)
    needed = ["httptools", "uvloop", *(["grpc", "google.protobuf"] if options.grpc_port is not None else [])]
    require_extra(package_dir, needed)
    return _serve(package_dir, options, say)


def require_extra(package_dir: Path, modules: list[str]) -> None:
    """Raise HostError that names the extra when one of its modules is missing."""
    name = read_manifest(package_dir).name
    for module in modules:
        try:
            importlib.import_module(module)
        except ImportError as error:
            if (refused := system_fault(error)) is not None:
                raise HostError(refused) from error
            raise HostError(
                f"serve needs {module}, which is not installed ({error}): pip install '{name}[serve]'"
            ) from None


def _serve(package_dir: Path, options: ServeOptions, say: Say) -> tuple[dict[str, Any], str]:
    import uvloop

    from .lifecycle import Server, allow_connections

    allow_connections(options.max_connections)
    keep_memory(os.environ)
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING, format="%(name)s: %(levelname)s: %(message)s")
    logging.getLogger("asyncio").setLevel(logging.ERROR)
    loop = uvloop.new_event_loop()
    asyncio.set_event_loop(loop)

    async def serve() -> Server:
        server = Server(package_dir, options, say)
        await server.run()
        return server

    try:
        server = loop.run_until_complete(serve())
        answered = server.metrics.requests.total()
        return {"answered": answered, "refused": server.metrics.refused.total()}, f"answered {answered:.0f} requests"
    finally:
        asyncio.set_event_loop(None)
        loop.close()
