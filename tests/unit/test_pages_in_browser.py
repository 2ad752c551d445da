"""Both pages as a browser shows them: nothing overflows, every text can be read in light and dark, print is whole.

Runs where Chromium or Chrome is installed and is skipped elsewhere; test_report.py and test_pages.py need none.
"""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cpupack.runtime.bench import stats
from cpupack.runtime.host import probe as host_probe
from cpupack.runtime.manifest import read_manifest
from cpupack.runtime.pages.bench_page import Tuning, bench_page
from cpupack.runtime.plain import to_data
from cpupack.stages.package import build_wheel, finish, stage_project
from cpupack.wheel.build_page import read_report, render_report
from helpers.build_facts import PLAN, RECOVERY, SECTIONS
from helpers.tiny_wheel import TinyWheel
from helpers.waiting import PATIENCE_S

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
BROWSER = next((found for name in NAMES if (found := shutil.which(name))), None)
pytestmark = pytest.mark.skipif(BROWSER is None, reason=f"no browser: none of {', '.join(NAMES)} is installed")

SCHEMES = {"light": "1", "dark": "0"}  # Chromium's own numbers of the preferred colour scheme
PROBE = """
<script>
addEventListener("load", () => {
  const probe = document.createElement("canvas").getContext("2d", {willReadFrequently: true});
  const rgba = colour => {
    probe.clearRect(0, 0, 1, 1); probe.fillStyle = colour; probe.fillRect(0, 0, 1, 1);
    return [...probe.getImageData(0, 0, 1, 1).data].map((each, at) => at < 3 ? each : each / 255);
  };
  const over = (top, below) => top.slice(0, 3).map((each, at) => each * top[3] + below[at] * (1 - top[3]));
  const luminance = rgb => {
    const [r, g, b] = rgb.map(each => each / 255).map(c => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const contrast = (a, b) => {
    const [low, high] = [luminance(a), luminance(b)].sort((x, y) => x - y);
    return (high + 0.05) / (low + 0.05);
  };
  const backdrop = element => {
    let layers = [];
    for (let each = element; each; each = each.parentElement) layers.push(rgba(getComputedStyle(each).backgroundColor));
    return layers.reverse().reduce((below, top) => over(top, below), [255, 255, 255]);
  };
  const answer = {overflow: document.documentElement.scrollWidth - innerWidth, faint: [], outside: [], texts: 0};
  answer.background = backdrop(document.body);
  const words = element => [...element.childNodes].some(node => node.nodeType === 3 && node.textContent.trim());
  for (const element of document.querySelectorAll("body, body *")) {
    if (!words(element) || element.matches("script, style, title, desc") || !element.getClientRects().length) continue;
    const style = getComputedStyle(element), drawn = element.matches("svg *");
    let below = backdrop(drawn ? element.closest("svg") : element);
    if (drawn) {
      const box = element.getBBox(), own = element.getBoundingClientRect();
      const frame = element.closest("svg").getBoundingClientRect();
      if (own.left < frame.left - 2 || own.right > frame.right + 2 || own.top < frame.top - 2
          || own.bottom > frame.bottom + 2) answer.outside.push(element.textContent);
      for (const rect of element.closest("svg").querySelectorAll("rect.heat, rect.bar")) {
        const under = rect.getBBox(), x = box.x + box.width / 2, y = box.y + box.height / 2;
        if (x > under.x && x < under.x + under.width && y > under.y && y < under.y + under.height) {
          const look = getComputedStyle(rect), colour = rgba(look.fill);
          below = over([...colour.slice(0, 3), colour[3] * look.fillOpacity], below);
        }
      }
    }
    answer.texts += 1;
    const ratio = contrast(over(rgba(drawn ? style.fill : style.color), below), below);
    if (ratio < 4.5) answer.faint.push([element.textContent.trim().slice(0, 40), ratio]);
  }
  const said = document.createElement("pre");
  said.id = "answer"; said.textContent = JSON.stringify(answer); document.body.append(said);
});
</script>
"""


def browse(tmp_path: Path, page: Path, *options: str, width: int = 1100) -> str:
    done = subprocess.run(
        [
            str(BROWSER), "--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--no-first-run",
            "--disable-background-networking", f"--user-data-dir={tmp_path / 'profile'}",
            f"--window-size={width},1400", *options, page.as_uri(),
        ],
        capture_output=True, text=True, timeout=PATIENCE_S, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def pages(tiny: TinyWheel, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A build's page with every section, and a bench's page with every chart."""
    directory = tmp_path_factory.mktemp("pages")
    staged = stage_project(tiny.contents(), directory / "project")
    layers = [
        {
            "name": f"features.{n}.block.0.conv",
            "precision": "int8",
            "kernel": "quantized::conv2d",
            "output_sqnr_db": 20.0 + n,
        }
        for n in range(60)
    ]
    facts = {
        **SECTIONS,
        "layers": layers,
        "recovery": RECOVERY,
        "plan": {"rows": PLAN.rows},
        "warnings": ["of something"],
    }
    facts["engines"] = {"fbgemm": {"speedup": 2.5, "passed": True}, "onednn": {"speedup": 1.5, "passed": False}}
    wheel = build_wheel(finish(staged, PLAN, facts), directory / "dist")
    return {
        "report": render_report(read_report(wheel.path)),
        "bench": bench_page(made_up(), read_manifest(staged.package_dir), Tuning(PLAN.rows, "here", (1, 2, 8))),
    }


def made_up() -> dict[str, Any]:
    latency_ms = np.random.default_rng(0).gamma(9.0, 2.0, 5000) + 5.0
    rates = [401.0, 395.5, 404.0, 398.0, 400.0]
    return {
        "scenario": "offline", "headline": "throughput_per_s", "batch_size": 8, "threads": 1, "instances": 2,
        "duration_s": 5.0, "samples": 2000, "calls": 5000, "throughput_per_s": 400.0,
        "throughput_ci95_per_s": list(stats.interval_95(rates)), "windows_per_s": rates,
        "latency_ms": stats.latency_summary(latency_ms),
        "latency_histogram": to_data(stats.latency_histogram(latency_ms)),
        "percentiles": stats.percentile_curve(latency_ms), "warmup": {"calls": 9, "duration_s": 1.0, "stable": True},
        "valid": False, "invalid_reasons": ["busy host"], "plan": {"threads": "given explicitly."},
        "cold_start_ms": {"import": 900.0, "load": 90.0, "first_call": 9.0, "total": 999.0},
        "peak_memory_bytes": 2**28, "input": "uint8", "input_data": "random pixels", "seed": 0,
        "host": host_probe.describe(),
        "manifest": {
            "name": "tiny-int8", "version": "1.0.0", "engine": "onednn", "isa": None, "torch": "2",
            "random_weights": True,
        },
    }  # fmt: skip


@pytest.mark.parametrize("width", [1100, 390])
@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("name", ["report", "bench"])
def test_everything_fits_and_can_be_read(
    pages: dict[str, str], tmp_path: Path, name: str, scheme: str, width: int
) -> None:
    page = tmp_path / "page.html"
    page.write_text(pages[name].replace("</body>", f"{PROBE}</body>").replace("<details>", "<details open>"))
    dumped = browse(
        tmp_path, page, "--dump-dom", f"--blink-settings=preferredColorScheme={SCHEMES[scheme]}", width=width
    )
    found = re.search(r'<pre id="answer">(.*?)</pre>', dumped, flags=re.S)
    assert found is not None
    answer = json.loads(html.unescape(found[1]))
    assert (sum(answer["background"]) / 3 < 64) == (scheme == "dark"), answer["background"]
    assert answer["texts"] > 100
    assert answer["overflow"] <= 0
    assert answer["outside"] == []
    assert answer["faint"] == [], "contrast below 4.5 (WCAG 2.2, 1.4.3)"


@pytest.mark.parametrize("name", ["report", "bench"])
def test_a_screenshot_is_no_blank_sheet(pages: dict[str, str], tmp_path: Path, name: str) -> None:
    (tmp_path / "page.html").write_text(pages[name])
    browse(tmp_path, tmp_path / "page.html", f"--screenshot={tmp_path / 'shot.png'}")
    shot = np.asarray(Image.open(tmp_path / "shot.png").convert("RGB"))
    assert shot.shape[0] > 1000
    inked = (shot != shot[0, 0]).any(axis=2)
    assert 0.02 < inked.mean() < 0.6
    blue = (shot[..., 2].astype(int) - shot[..., 0] > 80).mean()
    assert blue > 0.001, "no bar and no link is drawn in colour"


def test_print_has_what_is_folded_on_the_screen(pages: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "page.html").write_text(pages["report"])
    browse(
        tmp_path, tmp_path / "page.html", "--no-pdf-header-footer", f"--print-to-pdf={tmp_path / 'page.pdf'}",
        "--blink-settings=preferredColorScheme=0",
    )  # fmt: skip
    pdf = (tmp_path / "page.pdf").read_bytes()
    assert pdf.startswith(b"%PDF")
    assert 2 <= len(re.findall(rb"/Type\s*/Page\b", pdf)) <= 20
    if shutil.which("pdftotext") is None:
        pytest.skip("no pdftotext (poppler-utils) to read the printed page with")
    text = subprocess.run(
        ["pdftotext", "-layout", str(tmp_path / "page.pdf"), "-"], capture_output=True, text=True, check=True
    ).stdout
    assert "features.59.block.0.conv" in text, "the folded table of layers"
    assert "manifest.json" in text, "the folded list of files"
