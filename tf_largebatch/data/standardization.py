"""The standardization of pixels: `input = (pixel / pixel_scale - mean) / std`, per channel."""

from __future__ import annotations

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class Standardization:
    """How stored pixels become the images that a network sees.

    Attributes:
        mean: Per-channel mean of the training images, in units of `pixel_scale`.
        std: Per-channel standard deviation of the training images, in units of `pixel_scale`.
        pixel_scale: The largest possible stored pixel value.
        size: Height and width of the images that the network sees.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    pixel_scale: float
    size: tuple[int, int]

    @property
    def offset(self) -> np.ndarray:
        """What is subtracted from a pixel, float32 `(channels,)`."""
        return np.asarray(self.mean, np.float32) * np.float32(self.pixel_scale)

    @property
    def factor(self) -> np.ndarray:
        """What the difference is multiplied by, float32 `(channels,)`."""
        return np.float32(1) / (np.asarray(self.std, np.float32) * np.float32(self.pixel_scale))
