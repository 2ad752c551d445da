"""What a reload does with the package's code: it takes other code, and leaves nothing of it when it is replaced."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from cpupack.runtime.serve.loading import Code, code_now
from helpers.other_code import with_other_code
from helpers.tiny_package import keep_manifest

_MODULE = "_cpupack_other_code"


def imported() -> list[str]:
    return [name for name in sys.modules if name.partition(".")[0] == _MODULE]


def test_a_reload_of_the_same_code_imports_nothing(edited: Callable[..., Path], package_dir: Path) -> None:
    """Each rotation of the access log took 2.6 MB, which were never given back."""
    own = Code.own(package_dir)
    assert code_now(edited(version="2.0.0"), own, _MODULE) is own
    assert not imported()


def test_other_code_is_imported_beside_what_runs_and_forgotten_whole(
    edited: Callable[..., Path], package_dir: Path
) -> None:
    copy, own = edited(), Code.own(package_dir)
    keep_manifest(copy, with_other_code(copy))
    found = code_now(copy, own, _MODULE)
    assert found.make_runner is not own.make_runner
    assert imported()
    found.forget()
    own.forget()
    assert not imported()
    assert own.make_runner.__module__ in sys.modules


def test_code_that_cannot_be_imported_leaves_nothing(edited: Callable[..., Path], package_dir: Path) -> None:
    copy = edited()
    keep_manifest(copy, with_other_code(copy))
    (copy / "_runtime" / "runner.py").write_text("from . import errors\nraise ImportError('on purpose')\n")
    with pytest.raises(ImportError, match="on purpose"):
        code_now(copy, Code.own(package_dir), _MODULE)
    assert not imported()
