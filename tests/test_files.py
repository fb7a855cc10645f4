from __future__ import annotations

from multipass import files


def test_code_sha256_covers_every_room(monkeypatch):
    hashed = []
    monkeypatch.setattr(files, "sha256_of", lambda paths: hashed.extend(paths) or "")
    files.code_sha256.__wrapped__()
    package = set((files.ROOT / "multipass").rglob("*.py"))
    assert package <= set(hashed)
    rooms = {path.parent.name for path in hashed}
    assert {"geometry", "dicom", "data", "model", "evaluation", "results", "anatomy"} <= rooms
    assert files.ROOT / "inference_pipeline" / "run_inference.py" in hashed
