"""Fixtures for tests of the runner: small real packages, and a cache of their own."""

from __future__ import annotations

import dataclasses
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from cpupack.runtime.engine import library
from cpupack.runtime.manifest import read_manifest
from helpers.once import once
from helpers.tiny_package import keep_manifest, write_package


@pytest.fixture(scope="session")
def package_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A package for images, shared by the whole session: read it, never write to it."""
    return once(tmp_path_factory, "image", lambda root: write_package(root / "tiny_int8")) / "tiny_int8"


@pytest.fixture(scope="session")
def array_package_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A package without preprocessing, which takes float32 arrays."""
    root = once(tmp_path_factory, "array", lambda root: write_package(root / "tiny_int8", preprocess=None))
    return root / "tiny_int8"


@pytest.fixture(scope="session")
def native_package_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A package for images whose model is a native program."""
    if library.describe()["problem"] is not None:
        pytest.skip("needs the native kernels")
    from helpers.native_package import write_native_package  # here, because it imports the whole builder

    return once(tmp_path_factory, "native", lambda root: write_native_package(root / "tiny_int8")) / "tiny_int8"


@pytest.fixture
def edited(package_dir: Path, tmp_path: Path) -> Callable[..., Path]:
    """Copy the package and change fields of its manifest: ``edited(target={"isa": "amx"}, version="2")``."""

    def edit(**changes: object) -> Path:
        copy = Path(shutil.copytree(package_dir, Path(tempfile.mkdtemp(dir=tmp_path)) / "tiny_int8"))
        manifest = read_manifest(copy)
        merged = {
            key: {**(getattr(manifest, key) or {}), **value} if isinstance(value, dict) else value
            for key, value in changes.items()
        }
        keep_manifest(copy, dataclasses.replace(manifest, **merged))
        return copy

    return edit


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the user's host-tuned tables and thread settings out of the tests."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
