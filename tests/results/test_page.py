"""The pages: complete without a network, and alive in a browser where there is one."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from html import unescape
from html.parser import HTMLParser
from importlib import resources
from pathlib import Path
from urllib.parse import unquote_to_bytes, urlsplit

import numpy as np
import oracle
import pytest

from multipass.geometry.volume import Grid, Volume
from multipass.results.page import write_case_page, write_index, write_viewer
from multipass.results.viewer import page_data, viewer_script
from multipass.structures import PELVIS

BROWSER = next(filter(None, map(shutil.which, ("chromium", "google-chrome", "chrome"))), None)
needs_browser = pytest.mark.skipif(BROWSER is None, reason="no Chromium on this machine")
MAX_CASE_BYTES = 15e6
ODD = "Fälle #1, 100 %41 a&b"
# Where the flag of a sacrum in two parts leads: into the sacrum of `oracle.SCENE`.
PLACE_MM = [20.0, 50.0, 50.0]
PARTS = {"in several parts: sacrum": [{"structure": "sacrum", "place_mm": PLACE_MM}]}
# What a person does, and what the page then shows, as JSON in an attribute of the body.
PROBE = """<script>
const timer = setInterval(() => {
  if (document.body.dataset.ready !== 'yes') return;
  clearInterval(timer);
  const picture = id => {
    viewers[id].drawScene();
    return by(id).toDataURL();
  };
  const told = {start: by('place').textContent, bytes: picture('slices').length};
  const changes = (id, act) => {
    const before = picture(id);
    act();
    return before !== picture(id);
  };
  told.moves = changes('slices', () => viewers.slices.moveCrosshairInVox(10, 10, 10));
  told.leads = changes('slices', () => all('[data-place]')[0].click());
  told.place = by('place').textContent;
  const sacrum = all('[data-value]')[2];
  told.hides = [changes('slices', () => sacrum.click()), changes('slices', () => sacrum.click())];
  for (const box of all('[data-value]'))
    told.hides.push(changes('bones', () => box.click()) && !by('all').checked);
  told.shown = viewers.bones.meshes.filter(mesh => mesh.visible).length;
  by('all').click();
  told.shownAgain = viewers.bones.meshes.filter(mesh => mesh.visible).length;
  told.loaded = performance.getEntriesByType('resource').map(entry => entry.name);
  document.body.dataset.told = JSON.stringify(told);
}, 100);
</script>"""


def report(flags: list[str], scored: bool = True, case: str = "<b>case</b>") -> dict:
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
    measured = {"dice": 0.9, "outcome": "scored"} if scored else {}
    scores = [{"pass": 2, "structure": s.name, "volume_ml": 100.0, **measured} for s in PELVIS]
    content = {"case": case, "flags": flags, "structures": structures, "scores": scores}
    return {**content, "seconds": 1.0, "flag_places": PARTS}


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    output = tmp_path_factory.mktemp("pages") / ODD
    volume, label = oracle.scene(oracle.scene_grid())
    assert write_viewer(output)
    data = page_data(volume, label, PELVIS, np.roll(label, 2, 0))
    flags = ["missing: <sacrum>", *PARTS]
    reports = [report([]), report(flags), report(flags, case=ODD)]
    for name, one in (("case", reports[1]), (ODD, reports[2])):
        (output / name).mkdir()
        write_case_page(output / name, one, data)
    write_index(output, reports, [("bad", "no & CT")])
    return output


class Outside(HTMLParser):
    """Collects what a page would load."""

    def __init__(self) -> None:
        super().__init__()
        self.sources: list[str] = []
        self.cells = 0
        self.places: list[str] = []

    def handle_starttag(self, tag, attrs):
        self.cells += tag == "td"
        self.sources += [v for k, v in attrs if k in ("src", "href") and v]
        self.places += [v for k, v in attrs if k == "data-place" and v]


def parsed(path: Path) -> Outside:
    parser = Outside()
    parser.feed(path.read_text(encoding="utf-8"))
    return parser


def test_pages_load_nothing_from_elsewhere_and_escape_names(pages):
    for path in (pages / "index.html", pages / "case" / "view.html"):
        text = path.read_text(encoding="utf-8")
        parser = parsed(path)
        assert parser.cells >= 10
        assert not [s for s in parser.sources if re.match(r"\w+:|//", s)]
        assert "<b>case</b>" not in text and "&lt;b&gt;case" in text
    index = (pages / "index.html").read_text(encoding="utf-8")
    assert index.index("missing: &lt;sacrum&gt;") < index.rindex("<tr>")
    assert "no &amp; CT" in index


def test_data_cannot_end_its_script(tmp_path):
    (tmp_path / "case").mkdir()
    shown = {"names": ["</script><!--<script>"], "found": []}
    write_case_page(tmp_path / "case", report([]), shown)
    text = (tmp_path / "case" / "view.html").read_text()
    data = text.split('id="data">')[1].split("</script>")[0]
    assert json.loads(data) == shown and "<" not in data


def test_links_lead_to_what_is_there(tmp_path):
    names = [ODD, "a:b", "50%", "plain", os.fsdecode(b"\xfcmlaut")]
    for name in names:
        (tmp_path / name).mkdir()
        (tmp_path / name / "view.html").write_text("")
    (tmp_path / "full disk").mkdir()
    reports = [report([*PARTS], case=name) for name in [*names, "full disk"]]
    write_index(tmp_path, reports, [])
    found = {}
    for link in parsed(tmp_path / "index.html").sources:
        parts = urlsplit(link)
        assert not parts.scheme and not parts.query
        path = tmp_path / os.fsdecode(unquote_to_bytes(parts.path))
        assert path.exists()
        found.setdefault(path, []).append(parts.fragment)
    pages = {tmp_path / name / "view.html": ["", "flag-0"] for name in names}
    assert found == pages | {tmp_path / "full disk": [""]}


def test_a_flag_leads_to_the_places_of_its_structures(tmp_path):
    names = ["left femur", "a, b", "right femur"]
    places = [[1.0, 2.0, 3.0], None, [-4.0, 5.5, 6.0]]
    rows = [{"structure": n, "place_mm": p} for n, p in zip(names, places, strict=True)]
    flag = "cut by the field of view: left femur, a, b, right femur"
    one = {**report([flag, "left alone"]), "flag_places": {flag: rows}}
    shown = {"found": [], "names": [], "colours": []}
    for data, wanted in ((shown, [places[0], places[2]]), (None, [])):
        write_case_page(tmp_path, one, data)
        assert [json.loads(p) for p in parsed(tmp_path / "view.html").places] == wanted
        text = (tmp_path / "view.html").read_text(encoding="utf-8")
        items = re.findall(r'<li id="flag-\d">(.*?)</li>', text)
        assert [re.sub(r"<.*?>", "", item) for item in items] == [flag, "left alone"]


@pytest.mark.parametrize("scored", [True, False])
def test_scores_have_columns_only_with_a_reference(tmp_path, scored):
    one = report([], scored, "case")
    write_case_page(tmp_path, one, None)
    write_index(tmp_path, [one], [])
    for name, titles in (("view.html", ("Dice", "HD95 mm", "NSD 2 mm")), ("index.html", ("Dice",))):
        text = (tmp_path / name).read_text(encoding="utf-8")
        assert [title in text for title in titles] == [scored] * len(titles)
        rows = re.findall(r"<tr>(.*?)</tr>", text)
        assert len({row.count("<t") for row in rows}) == 1


def test_a_switch_for_each_bone_that_was_found(pages):
    volume, label = oracle.scene(oracle.scene_grid())
    data = page_data(volume, np.where(label == 4, 0, label), PELVIS)
    assert data["found"] == [1, 2, 3, 5] and {mesh["value"] for mesh in data["meshes"]} == {
        1,
        2,
        3,
        5,
    }
    write_case_page(pages / "case", report([]), data)
    text = (pages / "case" / "view.html").read_text(encoding="utf-8")
    assert re.findall(r'data-value="(\d)"', text) == ["1", "2", "3", "5"] and 'id="all"' in text


def test_the_crosshair_starts_on_bone():
    grid = oracle.scene_grid()
    volume, label = oracle.scene(grid)
    middle = np.asarray(grid.size) // 2
    ring = np.zeros(grid.size, np.uint8)
    ring[middle[0] - 9 : middle[0] + 9, middle[1] - 9 : middle[1] + 9, middle[2]] = 1
    ring[middle[0] - 7 : middle[0] + 7, middle[1] - 7 : middle[1] + 7, middle[2]] = 0
    for labels in (label, ring):
        place = page_data(volume, labels, PELVIS)["start"]
        index = np.rint((np.array(place) - grid.origin_mm) / grid.spacing_mm).astype(int)
        assert labels[tuple(index)] > 0
    assert page_data(volume, np.zeros_like(label), PELVIS)["start"] is None


def test_the_viewer_is_a_classic_script():
    script = viewer_script()
    assert script is not None and "globalThis.Niivue=" in script[-60:]
    assert not re.search(r"export\s*\{[^{}]*\};?\s*\}\)", script[-300:])


@pytest.mark.parametrize("bundle", ["var other = 1; export { other as default };", ""])
def test_another_bundle_is_refused(tmp_path, monkeypatch, bundle):
    (tmp_path / "ipyniivue" / "static").mkdir(parents=True)
    (tmp_path / "ipyniivue" / "__init__.py").write_text("")
    (tmp_path / "ipyniivue" / "static" / "widget.js").write_text(bundle)
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ValueError, match=r"ipyniivue \d.* requirements.txt, or run with --no-page"):
        write_viewer(tmp_path)


def test_templates_have_no_placeholder_left(pages):
    for path in (pages / "index.html", pages / ODD / "view.html"):
        text = re.sub(r"<script.*?</script>", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
        assert "$" not in text
    room = resources.files("multipass.results")
    assert all(room.joinpath(f"page.{kind}").is_file() for kind in ("html", "css", "js"))


def test_a_large_case_stays_small():
    grid = Grid((420, 360, 400), (0.7, 0.7, 0.8), (-147.0, -126.0, -160.0))
    noise = np.random.default_rng(0).normal(100, 40, (42, 36, 40)).astype(np.int16)
    array = np.kron(noise, np.ones((10, 10, 10), np.int16))
    label = np.zeros(grid.size, np.uint8)
    label[20:400, 20:340, 20:380] = 1
    data = page_data(Volume(array, grid), label, PELVIS)
    assert sum(len(str(part)) for part in data.values()) < MAX_CASE_BYTES


@needs_browser
@pytest.mark.slow
def test_a_browser_shows_it_and_does_what_it_is_told(pages):
    """Whatever the folders are called; and it asks no other host for anything."""
    text = (pages / ODD / "view.html").read_text(encoding="utf-8")
    probed = pages / ODD / "probed.html"
    probed.write_text(text.replace("</body>", PROBE + "</body>"), encoding="utf-8")
    flags = ["--headless=new", "--no-sandbox", "--use-angle=swiftshader", "--dump-dom"]
    flags += ["--enable-unsafe-swiftshader", "--ignore-gpu-blocklist", "--window-size=1200,900"]
    flags += ["--no-first-run", "--disable-background-networking", "--disable-sync"]
    flags += ["--disable-component-update", "--host-resolver-rules=MAP * ~NOTFOUND"]
    flags += ["--virtual-time-budget=30000"]
    flags.append(f"--user-data-dir={pages / 'profile'}")
    command = [str(BROWSER), *flags, probed.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=180, check=False)
    body = re.search(r'data-told="([^"]*)"', done.stdout)
    assert body is not None, (done.stdout[-500:], done.stderr[-500:])
    told = json.loads(unescape(body[1]))
    assert ", sacrum, at " in told["start"] and told["bytes"] > 10_000
    assert told["moves"] and told["leads"]
    assert ", sacrum, at 20, 50, 50 mm" in told["place"]
    assert told["hides"] == [True] * 7 and (told["shown"], told["shownAgain"]) == (0, 5)
    assert {urlsplit(address).scheme for address in told["loaded"]} <= {"file", "data", "blob"}
