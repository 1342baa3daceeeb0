"""Pictures by class: all in memory, or encoded and decoded when they are first drawn."""

from __future__ import annotations

import io
from abc import ABC, abstractmethod
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from typing_extensions import override

from benchmarks.problems.data_files import BrokenDataError


class Pictures(ABC):
    """As many pictures of each class.

    Attributes:
        classes: How many classes.
        per_class: How many pictures of each.
        shape: (channels, height, width) of a picture.
    """

    def __init__(self, classes: int, per_class: int, shape: tuple[int, int, int]) -> None:
        self.classes, self.per_class, self.shape = classes, per_class, shape

    @abstractmethod
    def take(self, classes: Tensor, which: Tensor) -> Tensor:
        """Some pictures.

        Args:
            classes: Indices of classes.
            which: Indices of pictures within them, of the same shape.

        Returns:
            Unsigned bytes of that shape and (channels, height, width).
        """


class StoredPictures(Pictures):
    """Pictures in memory.

    Args:
        pixels: Unsigned bytes, [classes, pictures of each, channels, height, width].
    """

    def __init__(self, pixels: Tensor) -> None:
        classes, per_class, channels, height, width = pixels.shape
        super().__init__(classes, per_class, (channels, height, width))
        self._pixels = pixels

    @override
    def take(self, classes: Tensor, which: Tensor) -> Tensor:
        return self._pixels[classes, which]


class EncodedPictures(Pictures):
    """Colour pictures in files of any kind that Pillow reads.

    Each is decoded once, when it is first drawn. Memory grows with the pictures that were drawn,
    to `classes * per_class * 3 * size^2` bytes at most. Two threads may share it: at worst both
    decode a picture, to the same pixels.

    Args:
        read: `read(class, picture)` is the content of a file.
        classes: How many classes.
        per_class: How many pictures of each.
        size: Height and width; pictures of another size are resized (Lanczos).
    """

    def __init__(
        self, read: Callable[[int, int], bytes], classes: int, per_class: int, size: int
    ) -> None:
        super().__init__(classes, per_class, (3, size, size))
        self._read = read
        self._decoded: dict[tuple[int, int], np.ndarray] = {}

    @override
    def take(self, classes: Tensor, which: Tensor) -> Tensor:
        places = zip(classes.flatten().tolist(), which.flatten().tolist(), strict=True)
        pixels = np.stack([self._pixels(*place) for place in places])
        return torch.from_numpy(pixels).reshape(*classes.shape, *self.shape)

    def _pixels(self, row: int, column: int) -> np.ndarray:
        found = self._decoded.get((row, column))
        if found is None:
            found = self._decoded[row, column] = self._decode(row, column)
        return found

    def _decode(self, row: int, column: int) -> np.ndarray:
        """The pixels of a picture, [3, size, size]."""
        try:
            from PIL import Image, UnidentifiedImageError  # noqa: PLC0415
        except ImportError as error:
            raise BrokenDataError(
                "these pictures are encoded: install Pillow, which the extra `bench` brings."
            ) from error
        try:
            image = Image.open(io.BytesIO(self._read(row, column))).convert("RGB")
        except (UnidentifiedImageError, OSError) as error:
            raise BrokenDataError(f"picture {column} of class {row} cannot be decoded.") from error
        wanted = self.shape[1:]
        if image.size != wanted:
            image = image.resize(wanted, Image.Resampling.LANCZOS)
        return np.ascontiguousarray(np.asarray(image).transpose(2, 0, 1))
