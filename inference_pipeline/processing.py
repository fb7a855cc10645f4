"""Preprocessing of a new scan, and the way back to its own grid.

read_scan -> passes.segment -> own_grid_labels
"""

from __future__ import annotations

from multipass.data.scan import Scan, read_scan
from multipass.model.way_back import oblique_labels, own_grid_labels

__all__ = ["Scan", "oblique_labels", "own_grid_labels", "read_scan"]
