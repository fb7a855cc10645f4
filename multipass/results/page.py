"""index.html of a cohort and one page a case, offline and opened from a file."""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Sequence
from functools import cache
from html import escape
from importlib import resources
from pathlib import Path
from string import Template
from typing import Any
from urllib.parse import quote

from multipass.files import replacing
from multipass.results.viewer import VIEWER_NAME, viewer_script

CASE_PAGE = "view.html"
INDEX = "index.html"
SCRIPTLESS = (
    "The slices and the bones in 3D need NiiVue: install the ipyniivue of requirements.txt, then "
    "run again. The picture below is complete without it."
)
SCORES = {"dice": "Dice", "hd95_mm": "HD95 mm", "assd_mm": "ASSD mm", "nsd_2mm": "NSD 2 mm"}


def write_case_page(folder: Path, report: dict[str, Any], data: dict[str, Any] | None) -> None:
    """Writes view.html into a case's folder.

    Args:
        report: the case's report.json.
        data: of `viewer.page_data`; None: the page has no viewer.
    """
    with_reference = any(row.get("outcome") for row in report["scores"])
    note = "<p>3D: the redder, the farther from the reference, 5 mm and more in full.</p>"
    picture = '<p><img src="overlay.png" alt="Three planes through the bones with the mask"></p>'
    body = (
        f'<p><a href="../{INDEX}">All cases</a></p><h1>{escape(report["case"])}</h1>'
        f"{_flags(report, with_places=data is not None)}"
        f"{f'<p>{SCRIPTLESS}</p>' if data is None else _views(data)}"
        f"{note if with_reference and data else ''}{_structure_table(report, with_reference)}"
        f"{picture if (folder / 'overlay.png').exists() else ''}"
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
    dice = {report["case"]: _mean_dice(report) for report in reports}
    with_dice = any(dice.values())
    rows = ""
    for report in sorted(reports, key=lambda r: -len(r["flags"])):
        volumes = {row["name"]: _volume(row) for row in _shown(report)}
        cells = [_link(output, report, "of an earlier run" if report["case"] in earlier else "")]
        cells += [f'<td class="flags">{_flag_links(output, report)}</td>']
        figures = [volumes.get(name, "") for name in names]
        figures += [dice[report["case"]]] if with_dice else []
        rows += _row([*cells, *map(_figure, [*figures, f"{report['seconds']:.1f}"])])
    failures = "".join(
        f'<li class="flags">{escape(name)}: {escape(reason)}</li>' for name, reason in failed
    )
    figures = [f"{name}, mL" for name in names] + ["Mean Dice"] * with_dice + ["Seconds"]
    body = (
        f"<h1>Pelvic bones in {len(reports)} {'scan' if len(reports) == 1 else 'scans'}</h1>"
        f"{f'<h2>Failed</h2><ul>{failures}</ul>' if failures else ''}"
        f"{_table(['Case', 'Flags'], figures, rows)}"
        "<p>A volume in brackets is the visible part of a bone that the field of view cuts.</p>"
    )
    _write(output / INDEX, "Pelvic bones", body)


def write_viewer(output: Path) -> bool:
    """Puts niivue.js beside the index; False where ipyniivue is not installed.

    Raises:
        ValueError: ipyniivue holds it otherwise than expected.
    """
    script = viewer_script()
    if script is None:
        return False
    with replacing(output / VIEWER_NAME) as temporary:
        temporary.write_text(script, encoding="utf-8")
    return True


# ------------------------------------------------------------------------ parts


def _views(data: dict[str, Any]) -> str:
    """The viewer with its controls, and what it shows."""
    text = json.dumps(data).replace("<", "\\u003c")
    views = Template(_text("views.html"))
    switches = _switches(data)
    return views.substitute(
        switches=switches, data=text, viewer=VIEWER_NAME, script=_text("page.js")
    )


def _switches(data: dict[str, Any]) -> str:
    """A box to tick for each bone that was found, and one for all."""
    box = '<label><input type="checkbox" checked autocomplete="off" {}>{}</label>'
    boxes = []
    for value in data["found"]:
        name = _chip(data["colours"][value - 1]) + escape(data["names"][value - 1])
        boxes.append(box.format(f'data-value="{value}"', name))
    return "\n".join(boxes + [box.format('id="all"', "all")] * (len(boxes) > 1))


def _flags(report: dict[str, Any], with_places: bool) -> str:
    places = report.get("flag_places", {}) if with_places else {}
    items = "".join(
        f'<li id="flag-{n}">{_flag(flag, places.get(flag, []))}</li>'
        for n, flag in enumerate(report["flags"])
    )
    return f'<ul class="flags">{items}</ul>' if items else "<p>No flags.</p>"


def _flag(flag: str, places: Sequence[dict[str, Any]]) -> str:
    """A flag that leads to its places: with its first structure to the first, and so on."""
    names = [row["structure"] for row in places]
    what = flag.removesuffix(", ".join(names))
    return (
        escape(flag)
        if not places
        else ", ".join(
            _to_place(name if n else what + name, row["place_mm"])
            for n, (name, row) in enumerate(zip(names, places, strict=True))
        )
    )


def _to_place(text: str, place_mm: Sequence[float] | None) -> str:
    if place_mm is None:
        return escape(text)
    return f'<button data-place="{json.dumps(place_mm)}">{escape(text)}</button>'


def _flag_links(output: Path, report: dict[str, Any]) -> str:
    """A case's flags, those with a place as links to it."""
    page = _page_of(output, report)
    places = report.get("flag_places", {}) if page.endswith(CASE_PAGE) else {}
    return "<br>".join(
        f'<a href="{page}#flag-{n}">{escape(flag)}</a>' if flag in places else escape(flag)
        for n, flag in enumerate(report["flags"])
    )


def _link(output: Path, report: dict[str, Any], note: str) -> str:
    return (
        f'<td><a href="{_page_of(output, report)}">{escape(report["case"])}</a>'
        f'<div class="from">{escape(report.get("input", ""))}<br>{note}</div></td>'
    )


def _page_of(output: Path, report: dict[str, Any]) -> str:
    """The address of a case's page from the index, or of its folder where it has none."""
    has_page = (output / report["case"] / CASE_PAGE).exists()
    return f"{quote(os.fsencode(report['case']), safe='')}/{CASE_PAGE if has_page else ''}"


def _shown(report: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows of its structures; none where the scan holds none of them."""
    rows = report["structures"]
    return [] if all(row["status"] == "missing" for row in rows) else rows


def _mean_dice(report: dict[str, Any]) -> str:
    last = max((row["pass"] for row in report["scores"]), default=0)
    dice = [row.get("dice") for row in report["scores"] if row["pass"] == last]
    dice = [value for value in dice if value is not None]
    return f"{sum(dice) / len(dice):.3f}" if dice else ""


def _structure_table(report: dict[str, Any], with_reference: bool) -> str:
    scores = {row["structure"]: row for row in report["scores"]}
    columns = SCORES if with_reference else {}
    rows = ""
    for row in report["structures"] if scores else _shown(report):
        score = scores.get(row["name"], {})
        figures = [_volume(row), _number(row["mean_hu"], 0), _number(row["confidence"], 2)]
        figures += [_number(row["disagreement"], 3)]
        figures += [_number(score.get(key), 3 if "_mm" not in key else 2) for key in columns]
        name = f"<td>{_chip(row['colour'])}{escape(row['name'])}</td>"
        rows += _row([name, f"<td>{escape(row['status'])}</td>", *map(_figure, figures)])
    if not rows:
        return ""
    titles = ["mL", "Mean HU", "Confidence", "Passes differ by", *columns.values()]
    return _table(["Structure", "Status"], titles, rows)


def _table(texts: Sequence[str], figures: Sequence[str], rows: str) -> str:
    titles = "".join(f"<th>{title}</th>" for title in texts)
    titles += "".join(f'<th class="n">{escape(title)}</th>' for title in figures)
    return f"<table><thead><tr>{titles}</tr></thead><tbody>{rows}</tbody></table>"


def _row(cells: Sequence[str]) -> str:
    return f"<tr>{''.join(cells)}</tr>"


def _figure(text: str) -> str:
    return f'<td class="n">{text}</td>'


def _chip(colour: Sequence[int]) -> str:
    rgb = ",".join(map(str, colour))
    return f'<span class="chip" style="background:rgb({rgb})"></span>'


def _volume(row: dict[str, Any]) -> str:
    if row["volume_ml"] is not None:
        return _number(row["volume_ml"], 1)
    return f"({_number(row['visible_ml'], 1)})" if row["visible_ml"] is not None else "missing"


def _number(value: float | None, digits: int) -> str:
    return "" if value is None or value != value else f"{value:.{digits}f}"


@cache
def _text(name: str) -> str:
    """A file of this room."""
    return resources.files(__package__).joinpath(name).read_text(encoding="utf-8")


def _write(path: Path, title: str, body: str) -> None:
    page = Template(_text("page.html"))
    text = page.substitute(title=escape(title), style=_text("page.css"), body=body)
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")
