"""The page at / in a real browser: what it shows, that it loads nothing from elsewhere, keyboard, light and dark."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cpupack.runtime.tasks.answer import Answer
from cpupack.runtime.tasks.draw import colour_of
from cpupack.runtime.tasks.fill import Filled, Guess
from cpupack.runtime.tasks.tokens import Labelled, Span
from helpers.browser import BROWSER, CONTRAST, Tab, browsing
from helpers.named_package import write_named_package
from helpers.once import once
from helpers.served import Served, serving

pytestmark = pytest.mark.skipif(BROWSER is None, reason="no Chromium is installed")


@pytest.fixture(scope="session")
def package_dir(native_package_dir: Path) -> Path:
    """A package whose processes start without torch. ``test_serve_http.py`` has one with it."""
    return native_package_dir


def image(path: Path) -> Path:
    out = io.BytesIO()
    Image.fromarray(np.random.default_rng(1).integers(0, 256, (60, 80, 3), dtype=np.uint8)).save(out, "PNG")
    path.write_bytes(out.getvalue())
    return path


@pytest.fixture(scope="module")
def server(package_dir: Path) -> Iterator[Served]:
    with serving(package_dir, "--max-latency-ms", "10000") as served:
        yield served


@pytest.fixture(scope="module")
def tab(server: Served) -> Iterator[Tab]:
    with browsing() as one:
        yield one


def test_it_shows_the_model_classifies_a_file_and_draws(server: Served, tab: Tab, tmp_path: Path) -> None:
    tab.open(f"http://127.0.0.1:{server.port}/")
    tab.wait("document.querySelectorAll('#card tr').length > 5")
    assert tab.run("document.querySelector('h1').textContent") == "tiny-int8 1.0.0"
    assert "p99 at most 10000 ms" in tab.run("document.querySelector('#card').innerText")
    tab.choose_file("#file", image(tmp_path / "a.png"))
    tab.wait("!document.querySelector('#answer').hidden")
    classes = tab.run("[...document.querySelectorAll('#classes li span')].map((e) => e.textContent)")
    assert set(classes) == {"cat", "dog", "bird", "fish"}
    assert "model" in tab.run("document.querySelector('#times').textContent")
    tab.wait("document.querySelector('#latency path')?.getAttribute('d').includes('M')")
    tab.wait("document.querySelector('#rate-now').textContent !== ''")
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no image")
    tab.choose_file("#file", broken)
    tab.wait("!document.querySelector('#problem').hidden")
    assert "not an image" in tab.run("document.querySelector('#problem').textContent")
    assert tab.run("document.querySelector('#answer').hidden")  # what stands there would belong to another image


def test_its_colours_are_those_of_drawn_files(server: Served, tab: Tab) -> None:
    tab.open(f"http://127.0.0.1:{server.port}/")
    found = tab.run("Array.from({ length: 300 }, (_, index) => colourOf(index))")
    drawn = np.array([colour_of(index) for index in range(300)])
    assert np.abs(np.array(found) - drawn).max() <= 1  # halves are rounded in another way


def test_a_model_that_finds_nothing_says_so_and_long_lists_are_cut(server: Served, tab: Tab) -> None:
    tab.open(f"http://127.0.0.1:{server.port}/")
    tab.wait("document.querySelectorAll('#card tr').length > 5")
    times = "{ queue: 1, prepare: 1, compute: 1 }"
    tab.run(f"present(rowsOf({{ detections: [] }}), {times}, 5)")
    assert tab.run("document.querySelector('#classes').innerText").strip() == "nothing was found"
    one = "{ label: 'cat', index: 1, score: 0.5, box: [1, 2, 3, 4] }"
    tab.run(f"present(rowsOf({{ detections: Array(30).fill({one}) }}), {times}, 5)")
    assert tab.run("document.querySelectorAll('#classes li').length") == 20
    assert tab.run("document.querySelector('#more').innerText") == "and 10 more"


def test_scores_of_points_are_no_shares_and_lines_join_them(server: Served, tab: Tab) -> None:
    """The largest value of a heat map may be anything. As a width in percent it made the page wider than the window."""
    tab.open(f"http://127.0.0.1:{server.port}/")
    tab.wait("document.querySelectorAll('#card tr').length > 5")
    points = "[0, 1, 3].map((index) => ({ label: `p${index}`, index, x: 9 * index, y: 5, score: 15.125 - 16 * index }))"
    tab.run(f"present(rowsOf({{ points: {points} }}), {{ queue: 1, prepare: 1, compute: 1 }}, 5)")
    rows = tab.run("[...document.querySelectorAll('#classes li')].map((e) => e.innerText.replaceAll('\\n', ' '))")
    assert rows == ["p0 (0, 5) score 15.13", "p1 (9, 5) score -0.875", "p3 (27, 5) score -32.88"]
    tab.run(f"skeleton = [[0, 1], [1, 2], [3, 0]]; mark({{ width: 40, height: 30, points: {points} }})")
    lines = (
        "[...document.querySelectorAll('#marks line')].map((e) => ['x1', 'x2'].map((each) => +e.getAttribute(each)))"
    )
    assert tab.run(lines) == [[0, 9], [27, 0]]
    one = "{ label: 'cat', index: 1, score: 3.5, box: [1, 2, 3, 4] }"
    tab.run(f"present(rowsOf({{ detections: [{one}] }}), {{ queue: 1, prepare: 1, compute: 1 }}, 5)")
    assert tab.run("document.documentElement.scrollWidth <= innerWidth")


@pytest.mark.parametrize(
    ("result", "rows"),
    [
        (Labelled((Span("PER", 0.75, 0, 8, "Anna Lee"),), ()), ["PER Anna Lee (0-8) 75.0 %"]),
        (Answer("Rio", 0.5, 18, 21, 0.25), ["Rio (18-21) 50.0 %"]),
        (
            Filled(((Guess("cat", 4, 0.5), Guess("dog", 5, 0.25)), (Guess("runs", 8, 1.0),))),
            ["cat gap 1 50.0 %", "dog gap 1 25.0 %", "runs gap 2 100.0 %"],
        ),
    ],
)  # fmt: skip
def test_results_that_lie_in_a_text_have_rows(server: Served, tab: Tab, result: Any, rows: list[str]) -> None:
    """The page said that nothing was found."""
    tab.open(f"http://127.0.0.1:{server.port}/")
    tab.wait("document.querySelectorAll('#card tr').length > 5")
    tab.run(f"present(rowsOf({json.dumps(result.to_dict())}), {{ queue: 1, prepare: 1, compute: 1 }}, 5)")
    shown = "[...document.querySelectorAll('#classes li')].map((e) => e.innerText.replaceAll('\\n', ' '))"
    assert tab.run(shown) == rows


def test_it_takes_an_image_that_is_dropped(server: Served, tab: Tab) -> None:
    tab.open(f"http://127.0.0.1:{server.port}/")
    tab.run("""
        const canvas = document.createElement("canvas");
        canvas.width = canvas.height = 32;
        new Promise((done) => canvas.toBlob((blob) => {
          const data = new DataTransfer();
          data.items.add(new File([blob], "a.png", { type: "image/png" }));
          document.querySelector("#drop").dispatchEvent(new DragEvent("drop", { dataTransfer: data, bubbles: true }));
          done();
        }))
    """)
    tab.wait("document.querySelectorAll('#classes li').length === 4")


@pytest.fixture(scope="module")
def named_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    package = once(tmp_path_factory, "named", lambda root: write_named_package(root / "tiny_int8")) / "tiny_int8"
    with serving(package) as served:
        yield served


def test_a_model_of_several_inputs_has_a_field_for_each(named_server: Served, tab: Tab, tmp_path: Path) -> None:
    tab.open(f"http://127.0.0.1:{named_server.port}/")
    tab.wait("document.querySelectorAll('.field').length === 3")
    hints = tab.run("[...document.querySelectorAll('.field')].map((e) => e.innerText.split('\\n')[1])")
    assert hints == ["INT64 [3]; whole numbers from 0 to 99", "FP32 [2, 2]", "BOOL [1]; may stay empty"]
    for number, value in enumerate(("[5, 9, 1]", "[[0.5, 1.5], [-2, 4]]", "")):
        tab.run(f"document.querySelector('#input-{number}').value = '{value}'")
    tab.run("document.querySelector('#input-0').focus()")
    for kind in ("keyDown", "keyUp"):
        tab.call("Input.dispatchKeyEvent", type=kind, key="Enter", code="Enter", windowsVirtualKeyCode=13, modifiers=2)
    rows = "[...document.querySelectorAll('#classes li')].map((e) => e.innerText.replaceAll('\\n', ' '))"
    tab.wait(f"{rows}.length === 2")
    assert tab.run(rows) == ["pair [2, 1] 2, 2", "best [] 1"]
    np.save(tmp_path / "ids.npy", np.array([1, 2, 90]))
    tab.choose_file(".field input", tmp_path / "ids.npy")
    tab.run("document.querySelector('#values button').click()")
    tab.wait(f"{rows}[1] === 'best [] 2'")  # the file counts, not the text
    tab.run("document.querySelector('#fill').click(); document.querySelector('#values button').click()")
    tab.wait(f"{rows}[0].startsWith('pair') && !{rows}[0].endsWith(' 2, 2')")
    tab.run("document.querySelector('#input-1').value = ''; document.querySelector('#values button').click()")
    tab.wait("!document.querySelector('#problem').hidden")
    assert tab.run("document.querySelector('#problem').textContent") == "features: give values or choose an .npy file"
    for scheme in ("light", "dark"):
        tab.scheme(scheme)
        assert tab.run(CONTRAST) >= 4.5


def test_the_next_state_takes_the_place_of_a_file_and_of_many_values(
    named_server: Served, tab: Tab, tmp_path: Path
) -> None:
    tab.open(f"http://127.0.0.1:{named_server.port}/")
    tab.wait("document.querySelectorAll('.field').length === 3")
    made = "{ ...inputs[1], name: 'h', state: 'h', sample: [2, 2], shape: [-1, 2, 2] }"
    large = "{ ...inputs[1], name: 'g', state: 'g', sample: [2, 15000], shape: [-1, 2, 15000] }"
    tab.run(f"drawFields({{ name: 'x', version: '1', inputs: [{made}, {large}] }}); drawFields = () => {{}}")  # no more
    np.save(tmp_path / "h.npy", np.ones((2, 2), np.float32))
    tab.choose_file("#input-0-hint ~ input", tmp_path / "h.npy")
    tab.run(
        "keepStates({ h: { shape: [2, 2], data: [1, 2, 3, 4] }, g: { shape: [2, 15000], data: Array(30000).fill(2) } })"
    )
    assert tab.run("[inputs[0].file.files.length, inputs[0].text.value, inputs[0].text.disabled]") == [
        0, "[[1,2],[3,4]]", False,
    ]  # fmt: skip
    assert tab.run("bodyOf({ named: true })[0].get('g').size") == 128 + 4 * 30000
    assert "that of the last answer" in tab.run("document.querySelector('#input-1-hint').textContent")
    length = "{ datatype: 'INT64', sample: [], default: null, vocabularies: [], vocabulary: 9, least: 1, state: null }"
    assert tab.run(f"sample({length}, false)") == 1  # the runner refuses a length of 0


@pytest.mark.parametrize(("datatype", "dtype"), [("FP32", "<f4"), ("INT64", "<i8"), ("UINT8", "|u1"), ("BOOL", "|b1")])
def test_the_page_makes_files_that_numpy_reads(server: Served, tab: Tab, datatype: str, dtype: str) -> None:
    """For inputs that are too large to be typed."""
    tab.open(f"http://127.0.0.1:{server.port}/")
    one = f"{{ datatype: '{datatype}', sample: [7, 3], default: null, vocabularies: [], vocabulary: 5, state: null }}"
    made = tab.run(
        f"(async () => {{ const one = {one}, values = sample(one, true);"
        " return [values, [...new Uint8Array(await npy(one, values).arrayBuffer())]]; })()"
    )
    array = np.load(io.BytesIO(bytes(made[1])))
    assert array.dtype == dtype
    np.testing.assert_array_equal(array, np.array(made[0]).astype(dtype))


def test_a_size_that_may_differ_is_no_batch(server: Served, tab: Tab) -> None:
    tab.open(f"http://127.0.0.1:{server.port}/")
    one = "{ datatype: 'FP32', shape: [-1, 8, -1], image: false, ids: null, state: null, default: null }"
    assert tab.run(f"hintOf({one})") == "FP32 [8, any]"
    tab.wait("document.querySelectorAll('#card tr').length > 5")
    assert "UINT8 [n, 16, 16, 3]" in tab.run("document.querySelector('#card').innerText")


def test_nothing_comes_from_elsewhere_and_nothing_is_blocked(server: Served, tab: Tab) -> None:
    tab.events.clear()
    tab.open(f"http://127.0.0.1:{server.port}/")
    tab.wait("document.querySelectorAll('#card tr').length > 5")
    tab.open(f"http://127.0.0.1:{server.port}/docs")
    tab.wait("document.querySelectorAll('article').length >= 8")
    sent = [event["params"]["request"]["url"] for event in tab.events if event["method"] == "Network.requestWillBeSent"]
    own = (f"http://127.0.0.1:{server.port}/", f"blob:http://127.0.0.1:{server.port}/")
    assert len(sent) > 5
    assert [url for url in sent if not url.startswith(own)] == []
    problems = [event for event in tab.events if event["method"] in {"Log.entryAdded", "Runtime.exceptionThrown"}]
    texts = [str(event["params"]) for event in problems]
    assert [text for text in texts if "400" not in text] == []  # the browser notes the refused image


def test_it_can_be_used_with_the_keyboard_and_fits_a_phone(server: Served, tab: Tab) -> None:
    tab.open(f"http://127.0.0.1:{server.port}/")
    tab.wait("document.querySelectorAll('#card tr').length > 5")
    for kind in ("keyDown", "keyUp"):
        tab.call("Input.dispatchKeyEvent", type=kind, key="Tab", code="Tab", windowsVirtualKeyCode=9)
    assert tab.run("document.activeElement.id") == "file"
    assert tab.run("getComputedStyle(document.querySelector('#drop')).outlineStyle") == "solid"
    for width in (360, 1200):
        tab.width(width)
        assert tab.run("document.documentElement.scrollWidth - innerWidth") <= 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_text_can_be_read(server: Served, tab: Tab, scheme: str, tmp_path: Path) -> None:
    tab.scheme(scheme)
    for path, ready in (
        ("/", "document.querySelectorAll('#card tr').length > 5"),
        ("/docs", "document.querySelectorAll('article').length >= 8"),
    ):
        tab.open(f"http://127.0.0.1:{server.port}{path}")
        tab.wait(ready)
        assert tab.run(CONTRAST) >= 4.5  # WCAG 2, level AA
