"""index.html of a cohort and one page a case, offline and opened from a file."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from html import escape
from pathlib import Path
from typing import Any

from multipass.files import replacing
from multipass.results.viewer import VIEWER_NAME, viewer_script

CASE_PAGE = "view.html"
INDEX = "index.html"
SCRIPTLESS = (
    "The slices and the bones in 3D need NiiVue: <code>pip install ipyniivue</code>, then run "
    "again with <code>--overwrite</code>. The picture below is complete without it."
)
STYLE = """
:root { color-scheme: light dark; --ink: #1b1f24; --paper: #fff; --line: #d5dae0; --warn: #9a4b00;
  --soft: #f3f5f7; --link: #0b57a4; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e8eb; --paper: #14171a; --line: #363c43;
  --warn: #ffb454; --soft: #1d2125; --link: #8ab8f0; } }
body { font: 15px/1.45 system-ui, sans-serif; color: var(--ink); background: var(--paper);
  margin: 1.5rem auto; max-width: 1200px; padding: 0 1rem; }
a { color: var(--link); } a:focus-visible, canvas:focus-visible, :focus-visible {
  outline: 2px solid var(--link); outline-offset: 2px; }
table { border-collapse: collapse; width: 100%; margin: 1rem 0; display: block; overflow-x: auto; }
th, td { text-align: left; padding: .35rem .7rem; border-bottom: 1px solid var(--line);
  vertical-align: top; } th { background: var(--soft); }
th:nth-child(n + 3) { text-align: right; } td.n { text-align: right;
  font-variant-numeric: tabular-nums; }
.from { font-size: 80%; overflow-wrap: anywhere; }
.flags { color: var(--warn); } .chip { display: inline-block; width: .8em; height: .8em;
  border-radius: 2px; margin-right: .4em; }
.views { display: grid; grid-template-columns: 2fr 1fr; gap: .5rem; } @media (max-width: 800px) {
  .views { grid-template-columns: 1fr; } } .view { height: 62vh; background: #000; }
.controls { display: flex; flex-wrap: wrap; gap: 1rem; align-items: center; margin: .6rem 0; }
img { max-width: 100%; }
"""
SCRIPT = """
const data = JSON.parse(document.getElementById('data').textContent);
const bytes = text => Uint8Array.from(atob(text), c => c.charCodeAt(0)).buffer;
const by = id => document.getElementById(id);
async function start() {
  const common = {isRadiologicalConvention: true, dragAndDropEnabled: false,
    backColor: [0, 0, 0, 1], loadingText: ''};
  const slices = new Niivue({...common, multiplanarShowRender: 0, show3Dcrosshair: false});
  await slices.attachToCanvas(by('slices'));
  await slices.loadFromArrayBuffer(bytes(data.ct), 'ct.nii.gz');
  await slices.loadFromArrayBuffer(bytes(data.labels), 'labels.nii.gz');
  const column = c => [0, ...data.colours.map(rgb => rgb[c])];
  slices.volumes[1].setColormapLabel({R: column(0), G: column(1), B: column(2),
    A: [0, ...data.colours.map(() => 255)], I: [0, ...data.colours.map((_, k) => k + 1)],
    labels: ['', ...data.names]});
  slices.setSliceType(3);
  const show = () => {
    slices.volumes[0].cal_min = Number(by('low').value);
    slices.volumes[0].cal_max = Math.max(Number(by('high').value), Number(by('low').value) + 1);
    slices.setOpacity(1, Number(by('opacity').value));
    slices.updateGLVolume();
    by('window').textContent = `${by('low').value} to ${by('high').value} HU`;
  };
  for (const id of ['low', 'high', 'opacity']) by(id).addEventListener('input', show);
  for (const button of document.querySelectorAll('[data-window]'))
    button.addEventListener('click', () => {
      [by('low').value, by('high').value] = button.dataset.window.split(',');
      show();
    });
  slices.onLocationChange = place => {
    const [hounsfield, value] = place.values.map(shown => Math.round(shown.value));
    const [right, front, up] = Array.from(place.mm, Math.round);
    by('place').textContent = `${hounsfield} HU${value ? ', ' + data.names[value - 1] : ''}, at ` +
      `${-right}, ${-front}, ${up} mm (to the left, back, up)`;
  };
  by('slices').addEventListener('keydown', event => {
    const move = {ArrowUp: [0, 0, 1], ArrowDown: [0, 0, -1], ArrowLeft: [1, 0, 0],
      ArrowRight: [-1, 0, 0], PageUp: [0, 1, 0], PageDown: [0, -1, 0]}[event.key];
    if (!move) return;
    event.preventDefault();
    slices.moveCrosshairInVox(...move);
  });
  show();
  const bones = new Niivue({...common, show3Dcrosshair: false});
  await bones.attachToCanvas(by('bones'));
  for (const mesh of data.meshes)
    await bones.loadFromArrayBuffer(bytes(mesh.mz3), mesh.name.replaceAll(' ', '_') + '.mz3');
  bones.setSliceType(4);
  bones.setRenderAzimuthElevation(180, 10);
  window.viewers = {slices, bones};
  document.body.dataset.ready = 'yes';
}
start().catch(error => { by('place').textContent = `The viewer did not start: ${error}`; });
"""
VIEWS = """<div class="controls">
<button data-window="-250,1000">Bone</button><button data-window="-160,240">Soft tissue</button>
<label>from <input id="low" type="range" min="-250" max="1000" value="-250"></label>
<label>to <input id="high" type="range" min="-200" max="1250" value="1000"></label>
<output id="window"></output>
<label>mask <input id="opacity" type="range" min="0" max="1" step="0.05" value="0.5"></label>
</div><div class="views">
<div class="view"><canvas id="slices" tabindex="0"
aria-label="Slices with the mask: scroll, drag, or arrow keys and page up and down"></canvas></div>
<div class="view"><canvas id="bones" tabindex="0"
aria-label="The bones in 3D: drag to turn"></canvas></div></div><p id="place" role="status"></p>"""


def write_case_page(folder: Path, report: dict[str, Any], data: dict[str, Any] | None) -> None:
    """Writes view.html into a case's folder.

    Args:
        report: the case's report.json.
        data: of `viewer.page_data`; None: the page has no viewer.
    """
    viewer = f"<p>{SCRIPTLESS}</p>"
    if data is not None:
        text = json.dumps(data).replace("<", "\\u003c")
        viewer = (
            f'{VIEWS}<script type="application/json" id="data">{text}</script>'
            f'<script src="../{VIEWER_NAME}"></script><script>{SCRIPT}</script>'
        )
    with_reference = any(row.get("outcome") for row in report["scores"])
    note = "<p>3D: the redder, the farther from the reference, 5 mm and more in full.</p>"
    body = (
        f'<p><a href="../{INDEX}">All cases</a></p><h1>{escape(report["case"])}</h1>'
        f"{_flags(report)}{viewer}{note if with_reference and data else ''}"
        f"{_structure_table(report)}"
        '<p><img src="overlay.png" alt="Three planes through the bones with the mask"></p>'
        '<p><a href="report.json">report.json</a></p>'
    )
    _write(folder / CASE_PAGE, report["case"], body)


def write_index(
    output: Path,
    reports: Sequence[dict[str, Any]],
    failed: Sequence[tuple[str, str]],
    earlier: Collection[str] = (),
) -> None:
    """Writes index.html: failures, then the cases with the most flags first.

    Args:
        failed: name and reason.
        earlier: names of the cases that are of other runs than the last.
    """
    names = list(dict.fromkeys(row["name"] for report in reports for row in _shown(report)))
    head = "".join(f"<th>{escape(name)}, mL</th>" for name in names)
    rows = "".join(
        _case_row(report, names, "of an earlier run" if report["case"] in earlier else "")
        for report in sorted(reports, key=lambda r: -len(r["flags"]))
    )
    failures = "".join(
        f'<li class="flags">{escape(name)}: {escape(reason)}</li>' for name, reason in failed
    )
    body = (
        f"<h1>Pelvic bones in {len(reports)} {'scan' if len(reports) == 1 else 'scans'}</h1>"
        f"{f'<h2>Failed</h2><ul>{failures}</ul>' if failures else ''}"
        f"<table><thead><tr><th>Case</th><th>Flags</th>{head}<th>Mean Dice</th><th>Seconds</th>"
        f"</tr></thead><tbody>{rows}</tbody></table>"
        "<p>A volume in brackets is the visible part of a bone that the field of view cuts.</p>"
    )
    _write(output / INDEX, "Pelvic bones", body)


def write_viewer(output: Path) -> bool:
    """Puts niivue.js beside the index; False where ipyniivue cannot give it."""
    script = viewer_script()
    if script is None:
        return False
    with replacing(output / VIEWER_NAME) as temporary:
        temporary.write_text(script, encoding="utf-8")
    return True


def _case_row(report: dict[str, Any], names: Sequence[str], note: str) -> str:
    link = f"{report['case']}/{CASE_PAGE}"
    volumes = {row["name"]: _volume(row) for row in _shown(report)}
    cells = "".join(f'<td class="n">{volumes.get(name, "")}</td>' for name in names)
    last = max((row["pass"] for row in report["scores"]), default=0)
    dice = [row.get("dice") for row in report["scores"] if row["pass"] == last]
    dice = [value for value in dice if value is not None]
    mean = f"{sum(dice) / len(dice):.3f}" if dice else ""
    return (
        f'<tr><td><a href="{escape(link)}">{escape(report["case"])}</a>'
        f'<div class="from">{escape(report.get("input", ""))}<br>{note}</div></td>'
        f'<td class="flags">{"<br>".join(map(escape, report["flags"]))}</td>{cells}'
        f'<td class="n">{mean}</td><td class="n">{report["seconds"]:.1f}</td></tr>'
    )


def _shown(report: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows of its structures; none where the scan holds none of them."""
    rows = report["structures"]
    return [] if all(row["status"] == "missing" for row in rows) else rows


def _structure_table(report: dict[str, Any]) -> str:
    scores = {row["structure"]: row for row in report["scores"]}
    columns = ("dice", "hd95_mm", "assd_mm", "nsd_2mm")
    head = ["Structure", "Status", "mL", "Mean HU", "Confidence", "Passes differ by"]
    head += ["Dice", "HD95 mm", "ASSD mm", "NSD 2 mm"]
    rows = ""
    for row in report["structures"] if scores else _shown(report):
        colour = ",".join(map(str, row["colour"]))
        score = scores.get(row["name"], {})
        cells = [_volume(row), _number(row["mean_hu"], 0), _number(row["confidence"], 2)]
        cells += [_number(row["disagreement"], 3)]
        cells += [_number(score.get(column), 3 if "_mm" not in column else 2) for column in columns]
        rows += (
            f'<tr><td><span class="chip" style="background:rgb({colour})"></span>'
            f"{escape(row['name'])}</td><td>{escape(row['status'])}</td>"
            + "".join(f'<td class="n">{cell}</td>' for cell in cells)
            + "</tr>"
        )
    if not rows:
        return ""
    titles = "".join(f"<th>{title}</th>" for title in head)
    return f"<table><thead><tr>{titles}</tr></thead><tbody>{rows}</tbody></table>"


def _volume(row: dict[str, Any]) -> str:
    if row["volume_ml"] is not None:
        return _number(row["volume_ml"], 1)
    return f"({_number(row['visible_ml'], 1)})" if row["visible_ml"] is not None else "missing"


def _number(value: float | None, digits: int) -> str:
    return "" if value is None or value != value else f"{value:.{digits}f}"


def _flags(report: dict[str, Any]) -> str:
    items = "".join(f"<li>{escape(flag)}</li>" for flag in report["flags"])
    return f'<ul class="flags">{items}</ul>' if items else "<p>No flags.</p>"


def _write(path: Path, title: str, body: str) -> None:
    text = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" '
        f'content="width=device-width"><title>{escape(title)}</title><style>{STYLE}</style></head>'
        f"<body>{body}<p>Research use only, not for diagnosis.</p></body></html>"
    )
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")
