"""Files: written whole or not at all, and known by their hashes."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
_CHUNK_BYTES = 1 << 22


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside `path` that takes its name when the block ends without an error."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def claimed_otherwise(path: Path, facts: Mapping[str, object]) -> tuple[str, object] | None:
    """Claims a folder for content that is made with these facts, if nothing has before: writes them
    to a file, so that content of others is not mixed in.

    Args:
        facts: JSON values.

    Returns:
        The first fact that the claim has otherwise, with its value there (None where it has none);
        None if all agree.
    """
    if not path.exists():
        with replacing(path) as temporary:
            temporary.write_text(json.dumps(facts, indent=1), encoding="utf-8")
    before = json.loads(path.read_text(encoding="utf-8"))
    differing = (key for key in {**before, **facts} if before.get(key) != facts.get(key))
    return next(((key, before.get(key)) for key in differing), None)


def sha256_of(paths: Iterable[Path]) -> str:
    """Over the files' contents in the order given."""
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK_BYTES):
                digest.update(chunk)
    return digest.hexdigest()


@cache
def code_sha256() -> str:
    """Of the code that makes results, in all rooms: results of other code are made again."""
    folders = (ROOT / "multipass", ROOT / "inference_pipeline")
    return sha256_of(path for folder in folders for path in sorted(folder.rglob("*.py")))
