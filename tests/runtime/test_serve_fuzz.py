"""A coverage-guided fuzzer on the parsers of the server, where it is installed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SEEDS = [
    b'{"inputs":[{"name":"input","shape":[1,2],"datatype":"FP32","data":[1.5,null]}],"outputs":[{"name":"output"}]}',
    b'{"id":"1","inputs":[{"name":"a","shape":[1],"datatype":"BYTES","parameters":{"binary_data_size":6}}]}\x02\0\0\0ab',
    b'--x\r\nContent-Disposition: form-data; name="f"; filename="a.png"\r\n\r\ndata\r\n--x--\r\n',
]


def test_a_fuzzer_finds_nothing_in_the_parsers(tmp_path: Path) -> None:
    pytest.importorskip("atheris", reason="atheris is not installed")
    for number, seed in enumerate(SEEDS):
        (tmp_path / str(number)).write_bytes(seed)
    program = Path(__file__).parents[1] / "helpers" / "fuzz_parser.py"
    command = [
        sys.executable,
        str(program),
        "-atheris_runs=5000",
        "-seed=1",
        f"-artifact_prefix={tmp_path}/",
        tmp_path,
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    assert "Done 5000" in done.stderr
