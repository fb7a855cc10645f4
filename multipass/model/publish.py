r"""Makes of a trained network the file that ships, and the checksum beside it.

    python -m multipass.model.publish best_model.pth inference_pipeline/best_model.pth \
        --description "synthetic scans"

Weights are rounded to float16, which halves the file; convolutions round more than that anyway. Of
the patients, their number stays and the names go.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
import tyro

from multipass.files import sha256_of
from multipass.model import checkpoint

NAMES = ("training", "validation")  # in 'trained_on', lists of patients' ids


def publish(source: Path, target: Path, description: str = "") -> str:
    """Writes `target` and `target`.sha256; returns the SHA-256.

    Args:
        description: what the patients are if not patients; run_inference.py prints it.

    Raises:
        ValueError: `source` is no checkpoint.
    """
    checkpoint.load(source)
    content = checkpoint.read(source)
    content.pop("training", None)
    known = content.get("trained_on") or {}
    content["trained_on"] = {k: v for k, v in known.items() if k not in NAMES}
    content["trained_on"]["description"] = description
    rounded: dict[int, torch.Tensor] = {}  # a tensor that has two names stays one
    for name, weight in content["state_dict"].items():
        half = rounded.setdefault(weight.data_ptr(), weight.half())
        content["state_dict"][name] = half
    checkpoint.save(target, content)
    sha256 = sha256_of([target])
    beside = target.with_name(target.name + ".sha256")
    beside.write_text(f"{sha256}  {target.name}\n", encoding="utf-8")
    return sha256


def main(
    source: tyro.conf.Positional[Path],
    target: tyro.conf.Positional[Path],
    description: str = "",
) -> None:
    print(publish(source, target, description))


if __name__ == "__main__":
    try:
        tyro.cli(main, description=__doc__)
    except (ValueError, OSError) as error:
        sys.exit(f"publish: {error}")
