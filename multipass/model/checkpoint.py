"""Checkpoints: dicts of tensors and plain types that carry all that inference needs."""

from __future__ import annotations

import math
import platform
from dataclasses import dataclass, field
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from multipass.files import replacing, sha256_of
from multipass.model.network import MultiPassUNet
from multipass.structures import Structure

FORMAT = "multipass-checkpoint-2"
# Read as well: it says how many passes look, and whether the later ones look at the pelvis.
OLD_FORMAT = "multipass-checkpoint-1"
WINDOWS = ("scan", "pelvis", "parts")


@dataclass(frozen=True)
class Model:
    """A trained network and what it was trained for.

    Attributes:
        structures: of mask values 1 to K.
        hu_range: the Hounsfield units that become 0 and 1.
        windows: what each pass of its training looked at: 'scan', 'pelvis' or 'parts' of it.
        info: 'trained_on', 'date', 'dice', 'versions'.
        sha256: of the file.
    """

    network: MultiPassUNet
    structures: list[Structure]
    hu_range: tuple[float, float]
    windows: tuple[str, ...]
    info: dict = field(default_factory=dict)
    sha256: str = ""

    @property
    def origin(self) -> str:
        """'trained on 90 patients, 2026-11-27'."""
        trained_on = self.info.get("trained_on") or {}
        if isinstance(trained_on, dict):
            count = trained_on.get("patients", "an unknown number of")
            trained_on = f"{count} {trained_on.get('description') or 'patients'}"
        when = str(self.info.get("date") or "")[:10] or "on an unknown day"
        return f"trained on {trained_on}, {when}"


def versions() -> dict[str, str]:
    """Versions of the interpreter and of the packages that results depend on."""
    found = {"python": platform.python_version()}
    for name in ("torch", "monai", "numpy", "scipy", "SimpleITK"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "absent"
    return found


def as_dict(model: Model) -> dict:
    """What `save` writes; `load` and `from_dict` read it back."""
    on_cpu: dict[int, torch.Tensor] = {}  # a tensor that has two names stays one
    weights = {
        name: on_cpu.setdefault(weight.data_ptr(), weight.detach().cpu())
        for name, weight in model.network.state_dict().items()
    }
    return {
        "format": FORMAT,
        "state_dict": weights,
        "network": model.network.config,
        "structures": [s.to_dict() for s in model.structures],
        "hu_range": [float(v) for v in model.hu_range],
        "windows": list(model.windows),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "versions": versions(),
        **model.info,
    }


def save(path: Path, content: dict) -> None:
    """Writes a checkpoint under a temporary name, then renames it.

    Raises:
        OSError: it cannot be written, as to a full disk; an earlier one stays.
    """
    with replacing(path) as temporary:
        try:
            torch.save(content, temporary)
        except RuntimeError as error:  # how PyTorch says so
            reason = str(error).splitlines()[0]
            raise OSError(f"{path} cannot be written, is the disk full? ({reason})") from None


def set_aside(path: Path) -> Path | None:
    """Renames a checkpoint after its time of change, so that another run may write in its place;
    returns its new path, None where there is no checkpoint."""
    if not path.exists():
        return None
    when = datetime.fromtimestamp(path.stat().st_mtime)
    return path.replace(path.with_name(f"{path.stem}_{when:%Y-%m-%d_%H-%M-%S}{path.suffix}"))


def read(path: Path, device: torch.device | str = "cpu") -> dict:
    """The content of a checkpoint file, checked to be one.

    Raises:
        ValueError: the file is missing, damaged, or something else.
    """
    _check_there(path)
    try:
        content = torch.load(path, map_location=device, weights_only=True)
    except Exception:  # damaged pickles raise many kinds
        raise ValueError(
            f"{path}: damaged, or not a PyTorch checkpoint of plain tensors."
        ) from None
    if not isinstance(content, dict) or content.get("format") not in (FORMAT, OLD_FORMAT):
        raise ValueError(
            f"{path}: a PyTorch file, but not a checkpoint of this program ({FORMAT})."
        )
    return content


def load(path: Path, device: torch.device | str = "cpu") -> Model:
    """Reads a checkpoint for inference, its network in evaluation mode on `device`.

    A file `<name>.sha256` beside it, as `sha256sum` writes it, must agree.

    Raises:
        ValueError: the file is missing, damaged, or something else.
    """
    _check_there(path)
    sha256 = sha256_of([path])
    _check_sha256(path, sha256)
    content = read(path, device)
    try:
        with torch.device("meta"):  # no memory before the weights are known to fit
            network = MultiPassUNet(**content["network"])
        network.load_state_dict(content["state_dict"], assign=True)
        network.float()
        structures = [Structure.from_dict(row) for row in content["structures"]]
        low, high = content["hu_range"]
        windows = windows_of(content)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"{path}: its parts do not fit together ({reason}).") from None
    fits = len(structures) + 1 == network.classes and windows[:1] == ("scan",)
    fits = fits and set(windows) <= set(WINDOWS)
    fits = fits and list(windows) == sorted(windows, key=WINDOWS.index)
    if not (fits and -math.inf < low < high < math.inf):
        raise ValueError(
            f"{path}: its parts do not fit together ({len(structures)} structures, "
            f"{network.classes} classes, windows {windows}, {low} to {high} HU)."
        )
    info = {k: content.get(k) for k in ("trained_on", "date", "dice", "versions")}
    network.to(device).eval()
    return Model(network, structures, (float(low), float(high)), windows, info, sha256)


def windows_of(content: dict) -> tuple[str, ...]:
    """What each pass looks at, of a checkpoint's content of either format."""
    if content["format"] == FORMAT:
        return tuple(content["windows"])
    closer = int(content["passes"]) - 1
    return ("scan", *[content["window"]] * closer)


def _check_there(path: Path) -> None:
    if not path.is_file():
        raise ValueError(f"{path}: no such checkpoint. `python training.py` makes one.")


def _check_sha256(path: Path, found: str) -> None:
    beside = path.with_name(path.name + ".sha256")
    if not beside.is_file():
        return
    wanted = beside.read_text(encoding="utf-8", errors="replace").split()
    if not wanted or wanted[0].lower() != found:
        raise ValueError(
            f"{path}: its SHA-256 is {found}, and {beside.name} beside it says another; "
            f"download both again, or delete {beside.name} if the network was replaced on purpose."
        )
