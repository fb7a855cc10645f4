"""The pages: complete without a network, and alive in a browser where there is one."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import oracle
import pytest

from multipass.geometry.volume import Grid, Volume
from multipass.results.page import write_case_page, write_index, write_viewer
from multipass.results.viewer import page_data, viewer_script
from multipass.structures import PELVIS

HAS_VIEWER = importlib.util.find_spec("ipyniivue") is not None
BROWSER = next(filter(None, map(shutil.which, ("chromium", "google-chrome", "chrome"))), None)
needs_viewer = pytest.mark.skipif(not HAS_VIEWER, reason="ipyniivue is not installed")
needs_browser = pytest.mark.skipif(BROWSER is None, reason="no Chromium on this machine")
MAX_CASE_BYTES = 15e6
# Moves the crosshair by ten slices along each axis and notes whether the picture changed.
PROBE = """<script>
const timer = setInterval(() => {
  if (document.body.dataset.ready !== 'yes') return;
  clearInterval(timer);
  const picture = () => { viewers.slices.drawScene(); return by('slices').toDataURL(); };
  const before = picture();
  viewers.slices.moveCrosshairInVox(10, 10, 10);
  document.body.dataset.moved = before !== picture() ? 'yes' : 'no';
  document.body.dataset.meshes = viewers.bones.meshes.length;
  document.body.dataset.bytes = before.length;
}, 100);
</script>"""


def report(flags: list[str]) -> dict:
    structures = [
        {
            "name": s.name,
            "colour": list(s.colour),
            "status": "complete",
            "volume_ml": 100.0,
            "visible_ml": 100.0,
            "mean_hu": 300.0,
            "confidence": 0.9,
            "disagreement": None,
        }
        for s in PELVIS
    ]
    scores = [{"pass": 2, "structure": s.name, "dice": 0.9, "outcome": "scored"} for s in PELVIS]
    content = {"case": "<b>case</b>", "flags": flags, "structures": structures, "scores": scores}
    return {**content, "seconds": 1.0}


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    output = tmp_path_factory.mktemp("pages")
    volume, label = oracle.scene(oracle.scene_grid())
    has_viewer = write_viewer(output)
    data = page_data(volume, label, PELVIS, np.roll(label, 2, 0)) if has_viewer else None
    (output / "case").mkdir()
    write_case_page(output / "case", report(["missing: <sacrum>"]), data)
    write_index(output, [report([]), report(["missing: <sacrum>"])], [("bad", "no & CT")])
    return output


class Outside(HTMLParser):
    """Collects what a page would load."""

    def __init__(self) -> None:
        super().__init__()
        self.sources: list[str] = []
        self.cells = 0

    def handle_starttag(self, tag, attrs):
        self.cells += tag == "td"
        self.sources += [v for k, v in attrs if k in ("src", "href") and v]


def test_pages_load_nothing_from_elsewhere_and_escape_names(pages):
    for path in (pages / "index.html", pages / "case" / "view.html"):
        text = path.read_text()
        parser = Outside()
        parser.feed(text)
        assert parser.cells >= 10
        assert not [s for s in parser.sources if re.match(r"\w+:|//", s)]
        assert "<b>case</b>" not in text and "&lt;b&gt;case" in text
    index = (pages / "index.html").read_text()
    assert index.index("missing: &lt;sacrum&gt;") < index.rindex("<tr>")
    assert "no &amp; CT" in index


def test_data_cannot_end_its_script(tmp_path):
    (tmp_path / "case").mkdir()
    write_case_page(tmp_path / "case", report([]), {"names": ["</script><!--<script>"]})
    text = (tmp_path / "case" / "view.html").read_text()
    data = text.split('id="data">')[1].split("</script>")[0]
    assert json.loads(data) == {"names": ["</script><!--<script>"]} and "<" not in data


@needs_viewer
def test_the_viewer_is_a_classic_script():
    script = viewer_script()
    assert script is not None and "globalThis.Niivue=" in script[-60:]
    assert not re.search(r"export\s*\{[^{}]*\};?\s*\}\)", script[-300:])


@needs_viewer
def test_a_large_case_stays_small():
    grid = Grid((420, 360, 400), (0.7, 0.7, 0.8), (-147.0, -126.0, -160.0))
    noise = np.random.default_rng(0).normal(100, 40, (42, 36, 40)).astype(np.int16)
    array = np.kron(noise, np.ones((10, 10, 10), np.int16))
    label = np.zeros(grid.size, np.uint8)
    label[20:400, 20:340, 20:380] = 1
    data = page_data(Volume(array, grid), label, PELVIS)
    assert sum(len(str(part)) for part in data.values()) < MAX_CASE_BYTES


@needs_viewer
@needs_browser
@pytest.mark.slow
def test_a_browser_shows_it_and_moves_through_slices(pages):
    page = pages / "case" / "view.html"
    probed = pages / "case" / "probed.html"
    probed.write_text(page.read_text().replace("</body>", PROBE + "</body>"))
    flags = ["--headless=new", "--no-sandbox", "--use-angle=swiftshader", "--dump-dom"]
    flags += ["--enable-unsafe-swiftshader", "--ignore-gpu-blocklist", "--window-size=1200,900"]
    flags += ["--virtual-time-budget=30000", f"--user-data-dir={pages / 'profile'}"]
    command = [str(BROWSER), *flags, probed.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=180, check=False)
    body = re.search(r"<body[^>]*>", done.stdout)
    assert body is not None, done.stderr[-500:]
    assert 'data-ready="yes"' in body[0] and 'data-moved="yes"' in body[0]
    assert 'data-meshes="5"' in body[0]
    assert int(re.search(r'data-bytes="(\d+)"', body[0])[1]) > 10_000
    assert Path(probed).exists()
