"""One process or many: what differs under torchrun."""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from multipass.claims import claimed
from multipass.model.passes import chosen_device

# Parameters of mallopt(3)
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4


def keep_freed_memory() -> None:
    """Lets the C library keep what a step frees for the next one, where it is glibc.

    Large tensors otherwise go back to the system and come again page by page, in every step.
    """
    if sys.platform == "linux":
        library = ctypes.CDLL(None)
        if hasattr(library, "mallopt"):
            library.mallopt(M_MMAP_MAX, 0)
            library.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def start_processes(name: str = "auto") -> torch.device:
    """Joins the processes that torchrun started, if it did, and says where this one computes.

    Args:
        name: see `chosen_device`; each process on CUDA takes its own device unless it is 'cuda:N'.

    Raises:
        ValueError: there is no such device, or several processes would share it.
    """
    keep_freed_memory()
    device = chosen_device(name)
    if device.index is not None and int(os.environ.get("LOCAL_WORLD_SIZE", 1)) > 1:
        raise ValueError(f"device {name}: one for all processes of torchrun; cuda gives each one")
    if device.type == "cuda":
        own = int(os.environ.get("LOCAL_RANK", 0)) if device.index is None else device.index
        device = torch.device("cuda", own)
        torch.cuda.set_device(device)
    if "RANK" in os.environ and not dist.is_initialized():
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    return device


def stop_processes() -> None:
    """Leaves them in good order: their threads would abort an interpreter that ends under them."""
    if dist.is_initialized():
        dist.destroy_process_group()


def rank() -> int:
    """This process's number, 0 without torchrun."""
    return dist.get_rank() if dist.is_initialized() else 0


def say(text: str) -> None:
    """Prints a line, once for all processes."""
    if rank() == 0:
        print(text, flush=True)


def world_size() -> int:
    """How many processes train together, 1 without torchrun."""
    return dist.get_world_size() if dist.is_initialized() else 1


def average_gradients(network: torch.nn.Module) -> None:
    """Gradients of the whole batch from those of each process's part."""
    if world_size() == 1:
        return
    gradients = [p.grad for p in network.parameters() if p.grad is not None]
    flat = torch.cat([g.flatten() for g in gradients])
    dist.all_reduce(flat)
    flat /= world_size()
    for gradient, part in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(part.view_as(gradient))


def from_first(value: Any) -> Any:
    """What the first process has; it alone can be sure to see the output folder."""
    values = [value]
    if world_size() > 1:
        dist.broadcast_object_list(values)
    return values[0]


@contextlib.contextmanager
def claimed_by_first(folder: Path) -> Iterator[None]:
    """See `claims.claimed`: the first process does it for all of them.

    Raises:
        ValueError: in all processes.
    """
    with contextlib.ExitStack() as stack:
        refusal = ""
        if rank() == 0:
            try:
                stack.enter_context(claimed(folder))
            except ValueError as error:
                refusal = str(error)
        if refusal := from_first(refusal):
            raise ValueError(refusal)
        yield


def mean_over_processes(values: torch.Tensor) -> torch.Tensor:
    """The mean of each value over all processes."""
    if world_size() > 1:
        dist.all_reduce(values)
        values = values / world_size()
    return values


def gathered(rows: np.ndarray) -> np.ndarray:
    """Joins arrays of which each process has filled its own rows, the others being NaN."""
    if world_size() == 1:
        return rows
    parts: list = [None] * world_size()
    dist.all_gather_object(parts, rows)
    for other, part in enumerate(parts):
        rows[other :: world_size()] = part[other :: world_size()]
    return rows
