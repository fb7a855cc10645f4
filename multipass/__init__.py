"""3D MultiPass U-Net: pelvic bone segmentation in CT, from DICOM to masks.

    result = multipass.segment("scan.nii.gz")

`segment`, `load_model` and `Result` are those of `multipass.api`.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from multipass.api import Result, load_model, segment

__version__ = "0.1.0"
__all__ = ["Result", "__version__", "load_model", "segment"]


def __getattr__(name: str) -> Any:
    """Imports `api` when it is first asked for, since it needs torch and most rooms don't."""
    if name in __all__:
        return getattr(import_module("multipass.api"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
