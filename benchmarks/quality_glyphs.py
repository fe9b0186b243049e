"""Pictures of letters and digits, made from matplotlib's own fonts, and a small convolutional network for them."""

from __future__ import annotations

import functools
import string
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch
from torch import nn

Array: TypeAlias = np.ndarray[Any, Any]

CLASSES = string.ascii_letters + string.digits
FONTS = ("DejaVuSans", "DejaVuSansMono", "DejaVuSerif", "STIXGeneral")
SIZE = 16  # pixels of a side; glyphs have 15 at most
NOISE = 0.4  # deviation of a pixel, of ink from 0 to 1: some letters cannot be told apart


class Typefaces(NamedTuple):
    """Every class in every typeface.

    Attributes:
        ink: (faces, classes, SIZE, SIZE), from 0 to 1, in the upper left corner.
        sizes: (faces, classes, 2), height and width of the glyph.
    """

    ink: Array
    sizes: Array


@functools.cache
def typefaces() -> Typefaces:
    """Those that matplotlib brings, upright and slanted, light and bold."""
    import matplotlib
    from matplotlib.ft2font import FT2Font

    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    faces = sorted(path for path in folder.glob("*.ttf") if path.stem.partition("-")[0].startswith(FONTS))
    faces = [path for path in faces if "Display" not in path.stem]  # which have no letters
    ink = np.zeros((len(faces), len(CLASSES), SIZE, SIZE), np.float32)
    sizes = np.zeros((len(faces), len(CLASSES), 2), np.int64)
    for face, path in enumerate(faces):
        font = FT2Font(str(path))
        font.set_size(12, 72)
        for number, letter in enumerate(CLASSES):
            font.set_text(letter)
            font.draw_glyphs_to_bitmap(antialiased=True)
            picture = np.asarray(font.get_image())
            height, width = sizes[face, number] = picture.shape
            ink[face, number, :height, :width] = picture / np.float32(255)
    return Typefaces(ink, sizes)


def batch(seed: tuple[int, ...], count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Pictures (count, 1, SIZE, SIZE) near the middle under noise, and their classes: the same for one seed."""
    random = np.random.default_rng(seed)
    ink, sizes = typefaces()
    faces, classes = random.integers(0, len(ink), count), random.integers(0, len(CLASSES), count)
    free = SIZE - sizes[faces, classes]
    down, right = np.clip(free // 2 + random.integers(-1, 2, free.shape), 0, free).T
    rows = (np.arange(SIZE) - down[:, None]) % SIZE
    columns = (np.arange(SIZE) - right[:, None]) % SIZE
    moved = ink[faces[:, None, None], classes[:, None, None], rows[:, :, None], columns[:, None, :]]
    noisy = moved + np.float32(NOISE) * random.standard_normal(moved.shape, np.float32)
    return torch.from_numpy(noisy[:, None]), torch.from_numpy(classes)


class Convolutions(nn.Sequential):
    """Three convolutions with group norms, a linear layer."""

    def __init__(self, classes: int) -> None:
        def layer(inputs: int, outputs: int, stride: int) -> list[nn.Module]:
            convolution = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
            return [convolution, nn.GroupNorm(8, outputs), nn.ReLU()]

        last = nn.Linear(64 * (SIZE // 4) ** 2, classes)
        super().__init__(*layer(1, 16, 1), *layer(16, 32, 2), *layer(32, 64, 2), nn.Flatten(), last)
