"""One case: from its files to its folder of results."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from multipass import api
from multipass.data.case import Case
from multipass.data.scan import Scan, read_scan
from multipass.evaluation.scoring import score
from multipass.files import sha256_of
from multipass.model.checkpoint import Model
from multipass.results.output_folder import Place
from multipass.results.page import CASE_PAGE
from multipass.results.products import Wanted, page_of, products_of, write_case
from multipass.results.timing import Stages
from multipass.site_rules import read_rules

# Is told the names of a case and of each stage as it starts.
Announce = Callable[[str, str], None]


@dataclass(frozen=True)
class Request:
    """What a run wants of each of its cases.

    Attributes:
        model_path: of the network.
        device: 'auto', 'cpu', 'cuda' or 'cuda:N'.
        formats: 'nifti', 'seg', 'rtstruct'.
        meshes: 'stl', 'ply' or ''.
        rules_path: a site's own segment names.
        overwrite: finished cases are segmented again.
        page: 'viewer', 'picture' or ''.

    Raises:
        ValueError: a value that is not possible, or no rules at `rules_path`.
    """

    settings: api.Settings
    model_path: Path
    device: str = "auto"
    formats: tuple[str, ...] = ("nifti", "seg")
    meshes: str = ""
    rules_path: Path | None = None
    overwrite: bool = False
    page: str = ""

    def __post_init__(self) -> None:
        if not self.formats:
            raise ValueError("--format: name nifti, seg, labelmap, rtstruct or several of them")
        read_rules(self.rules_path)

    def identity_of(self, case: Case, model: Model) -> dict[str, Any]:
        """What a finished result of a case depends on."""
        return {
            **self.settings.identity(model, sha256_of(case.files)),
            "reference_sha256": self._reference_sha256(case),
            "format": sorted(set(self.formats)),
            "meshes": self.meshes,
            "page": self.page,
        }

    def _reference_sha256(self, case: Case) -> str | None:
        """None where there is no reference; "" for one that cannot be read, which scoring will
        say."""
        rules = [self.rules_path] if self.rules_path else []
        try:
            references = case.reference_files
            return sha256_of([*references, *rules]) if references else None
        except (OSError, ValueError):
            return ""


@dataclass(frozen=True)
class Task:
    """A case, and where its results go."""

    case: Case
    place: Place


def segment_case(
    task: Task,
    request: Request,
    model: Model,
    announce: Announce = lambda case, stage: None,
    is_wanted: Callable[[], bool] = lambda: True,
) -> dict[str, Any]:
    """One scan from its files to its folder of results; returns report.json's content.

    Args:
        is_wanted: asked before the results take their place.

    Raises:
        ValueError: the scan cannot be read or segmented, or is not wanted.
    """
    case, place = replace(task.case, name=task.place.path.name), task.place
    stages = Stages(partial(announce, case.name))
    with stages.stage("hash"):
        identity = request.identity_of(case, model)
        content = identity["input_sha256"]
        earlier = place.finished(identity)
    if earlier is not None and not request.overwrite:
        return earlier
    place.check()
    with stages.stage("read"):
        scan = read_scan(case)
    if "nifti" not in request.formats and not scan.slices:
        formats = " ".join(request.formats)
        raise ValueError(f"--format {formats} is for DICOM, and this is none: add nifti")
    result = _look(case, scan, model, request, stages)
    wanted = Wanted(request.formats, request.settings.probabilities, request.meshes)
    products = products_of(result.segmented, wanted)
    names = [*products, *([CASE_PAGE] if request.page else [])]
    with place.renewed(case, content, names) as (folder, kept):
        facts = {**result.facts, "case": case.name, "identity": identity}
        flags = [*result.flags, *wanted.not_for(scan.slices), *kept]
        facts |= {"structures": result.structures, "flags": flags}
        page = partial(page_of, result.segmented, with_viewer=request.page == "viewer")
        report = write_case(folder, products, facts, stages, page if request.page else None)
        if not is_wanted():
            raise ValueError("the run that asked for it has ended")
    return report


def _look(case: Case, scan: Scan, model: Model, request: Request, stages: Stages) -> api.Result:
    """The result, with scores where a reference lies beside the scan."""
    scan, settings = replace(scan, notes=(*case.notes, *scan.notes)), request.settings
    result, found = api.look(case.name, scan, model, settings, stages)
    with stages.stage("scores"):
        volumes_ml = [row["visible_ml"] for row in result.structures]
        compared = case, scan, result.array, found, model.structures, volumes_ml
        rules = read_rules(request.rules_path)
        scored = score(*compared, rules, least_part_mm3=settings.least_part_mm3)
    facts = {
        **result.facts,
        "input": case.source,
        "series_uid": case.series_uid,
        "model": {"path": request.model_path, **model.info},
        "scores": scored.rows,
        "problems": [scored.problem] if scored.problem else [],
    }
    segmented = replace(result.segmented, reference=scored.reference)
    return replace(result, facts=facts, segmented=segmented)
