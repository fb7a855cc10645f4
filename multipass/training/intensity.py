"""Intensity augmentation of the windows of one scan.

MONAI's transforms do gamma, shift, scale, blur and low resolution; what it lacks follows its
interface. All windows of a scan share their draws: they stack as channels.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from monai.data import set_track_meta
from monai.transforms import (
    Compose,
    RandAdjustContrast,
    Randomizable,
    RandomizableTransform,
    RandScaleIntensity,
    RandShiftIntensity,
    RandSimulateLowResolution,
)


class RandBlur(RandomizableTransform):
    """Gaussian blur by at most `sigma` voxels, three taps an axis."""

    def __init__(self, prob: float, sigma: float) -> None:
        super().__init__(prob)
        self.sigma = sigma

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        self.randomize(None)
        side = float(np.exp(-0.5 / self.R.uniform(0.3, self.sigma) ** 2))
        if not self._do_transform:
            return images
        for axis in (1, 2, 3):
            size = images.shape[axis]
            padded = torch.cat(
                [images.narrow(axis, 0, 1), images, images.narrow(axis, size - 1, 1)], axis
            )
            around = padded.narrow(axis, 0, size) + padded.narrow(axis, 2, size)
            images = (images + side * around) / (1 + 2 * side)
        return images


class RandNoise(RandomizableTransform):
    """Gaussian noise, drawn on the images' device; half the time correlated between voxels."""

    def __init__(self, prob: float, std: float) -> None:
        super().__init__(prob)
        self.std = std

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        self.randomize(None)
        std, smooth, seed = self.R.uniform(0, self.std), self.R.rand() < 0.5, self.R.randint(2**31)
        if not self._do_transform:
            return images
        generator = torch.Generator(images.device).manual_seed(int(seed))
        noise = torch.randn(images.shape, generator=generator, device=images.device)
        if smooth:
            noise = F.avg_pool3d(noise, 3, 1, 1) * 3
        return images + std * noise


class RandMetal(Randomizable):
    """Rods of metal in the last window, with streaks that fade with the distance; metal is no
    bone."""

    def __init__(self, prob: float) -> None:
        self.prob = prob

    def __call__(self, seen: torch.Tensor, boxes: list[np.ndarray]) -> torch.Tensor:
        """Takes and returns (W, C, X, Y, Z), image and fractions."""
        if self.R.rand() >= self.prob:
            return seen
        low, high = boxes[-1]
        for _ in range(self.R.randint(1, 4)):
            start = self.R.uniform(low, high)
            direction = self.R.normal(size=3)
            direction *= self.R.uniform(20, 120) / np.linalg.norm(direction)
            rod = start, direction, self.R.uniform(2, 12)
            rays, phase, depth = self.R.randint(2, 9), self.R.uniform(0, 6.3), self.R.uniform(0, 1)
            for channels, box in zip(seen, boxes, strict=True):
                inside = _add_rod(channels[0], box, rod, (rays, phase, depth))
                channels[1:].masked_fill_(inside, 0)
        return seen


def _centres(image: torch.Tensor, box: np.ndarray) -> list[torch.Tensor]:
    """x, y, z in mm of a window's voxels, each along its own axis."""
    out = []
    for axis, size in enumerate(image.shape):
        steps = (torch.arange(size, device=image.device, dtype=torch.float32) + 0.5) / size
        shape = [1, 1, 1]
        shape[axis] = size
        low, high = float(box[0, axis]), float(box[1, axis])
        out.append((low + steps * (high - low)).view(shape))
    return out


def _add_rod(image: torch.Tensor, box: np.ndarray, rod: tuple, streaks: tuple) -> torch.Tensor:
    """Draws a rod into an image (X, Y, Z); returns where it is."""
    start, direction, radius_mm = rod
    rays, phase, depth = streaks
    offset = [c - float(s) for c, s in zip(_centres(image, box), start, strict=True)]
    length2 = float(direction @ direction)
    along = torch.zeros_like(image)
    for o, d in zip(offset, direction, strict=True):
        along += o * float(d) / length2
    along.clamp_(0, 1)
    dx, dy, dz = (o - along * float(d) for o, d in zip(offset, direction, strict=True))
    in_plane = dx**2 + dy**2
    angle = torch.atan2(dy.expand_as(in_plane), dx.expand_as(in_plane))
    fade = depth * torch.exp(-(in_plane.sqrt() / (4 * radius_mm))) * (dz.abs() < radius_mm)
    image += fade * torch.sin(rays * angle + phase)
    inside = in_plane + dz**2 < radius_mm**2
    image.masked_fill_(inside, 1.0)
    return inside


class RandIntensity(Randomizable):
    """All intensity augmentations of one sample.

    Args:
        strength: factor of each one's probability.
    """

    def __init__(self, strength: float = 1.0) -> None:
        set_track_meta(False)  # plain tensors: nothing here moves a voxel
        self.metal = RandMetal(prob=0.12 * strength)
        self.plain = Compose(
            [
                RandAdjustContrast(prob=0.3 * strength, gamma=(0.7, 1.5)),
                RandScaleIntensity(factors=0.25, prob=0.5 * strength),
                RandShiftIntensity(offsets=0.08, prob=0.5 * strength),
                RandBlur(prob=0.25 * strength, sigma=1.2),
                # Nearest neighbours, its default, would move the image against the reference.
                RandSimulateLowResolution(
                    prob=0.1 * strength, zoom_range=(0.5, 1.0), downsample_mode="area"
                ),
                RandNoise(prob=0.5 * strength, std=0.08),
            ]
        )

    def set_random_state(self, seed=None, state=None) -> RandIntensity:
        """As MONAI's: each transform gets a state drawn from this one."""
        super().set_random_state(seed, state)
        self.metal.set_random_state(seed=int(self.R.randint(2**31)))
        self.plain.set_random_state(seed=int(self.R.randint(2**31)))
        return self

    def __call__(
        self, seen: torch.Tensor, boxes: list[np.ndarray]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Augments what the windows of one scan show.

        Args:
            seen: (W, 1 + K, X, Y, Z) image and fractions of each window; may be changed in place.
            boxes: (2, 3) of each window, mm.

        Returns:
            (W, X, Y, Z) images in [0, 1] and (W, K, X, Y, Z) fractions.
        """
        seen = self.metal(seen, boxes)
        return self.plain(seen[:, 0].contiguous()).clamp(0, 1), seen[:, 1:]
