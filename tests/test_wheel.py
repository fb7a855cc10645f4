"""The package as pip installs it: whole, and far from the repository."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from multipass import __version__
from multipass.files import ROOT

SAMPLE = ROOT / "inference_pipeline" / "test_data" / "sample_nifti.nii.gz"
# Below what each bone of the sample scores, see tests/model/test_shipped.py.
LEAST_DICE = 0.8
SEGMENT = """
import json, sys
import multipass, SimpleITK as sitk
from multipass.evaluation.metrics import compare
result = multipass.segment(sys.argv[1], device="cpu")
report = result.save("results/case")
reference = sitk.GetArrayFromImage(sitk.ReadImage(sys.argv[2])).T
rows = compare(result.array, reference, result.mask.GetSpacing(), list(result.volumes_ml))
dice = [row["dice"] for row in rows]
print(json.dumps({"file": multipass.__file__, "dice": dice, "files": sorted(report["files"])}))
"""


def ran(command: list[str], folder: Path, **variables: str) -> str:
    done = subprocess.run(
        command, cwd=folder, env={**os.environ, **variables}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """A folder that the wheel of what git tracks was installed to."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    for name in ran(["git", "ls-files"], ROOT).splitlines():
        if name.startswith(("multipass/", "inference_pipeline/best_model")) or "/" not in name:
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).symlink_to(ROOT / name)
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    ran([*pip, "wheel", "--no-deps", "--no-build-isolation", "-w", "dist", "./source"], folder)
    (wheel,) = (folder / "dist").glob("*.whl")
    assert wheel.name == f"multipass_unet-{__version__}-py3-none-any.whl"
    ran([*pip, "install", "--no-deps", "--target", "site", str(wheel)], folder)
    return folder / "site"


@pytest.mark.slow
def test_the_wheel_holds_all_of_the_package(site):
    tracked = ran(["git", "ls-files", "multipass"], ROOT).splitlines()
    assert [name for name in tracked if not (site / name).is_file()] == []
    (facts,) = site.glob("*.dist-info/METADATA")
    pinned = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    wanted = {line for line in pinned if line and not line.startswith("#")}
    lines = facts.read_text(encoding="utf-8").splitlines()
    needed = {line.removeprefix("Requires-Dist: ") for line in lines if "Requires-Dist" in line}
    assert needed == wanted and (site / "multipass" / "py.typed").is_file()


@pytest.mark.slow
def test_the_wheel_segments_the_sample(site, tmp_path):
    reference = SAMPLE.with_name("sample_nifti_seg.nii.gz")
    command = [sys.executable, "-c", SEGMENT, str(SAMPLE), str(reference)]
    found = json.loads(ran(command, tmp_path, PYTHONPATH=str(site)).splitlines()[-1])
    assert Path(found["file"]).is_relative_to(site)
    assert min(found["dice"]) >= LEAST_DICE
    assert found["files"] == ["mask.nii.gz", "overlay.png"]
    assert (tmp_path / "results" / "case" / "report.json").is_file()
