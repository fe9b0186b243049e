"""Pictures of letters and digits, made from matplotlib's own fonts, and a small convolutional network for them."""

from __future__ import annotations

import functools
import string
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

CLASSES = string.ascii_letters + string.digits
FONTS = ("DejaVuSans", "DejaVuSansMono", "DejaVuSerif", "STIXGeneral")
SIZE = 16  # pixels of a side; glyphs have 15 at most
NOISE = 0.2  # deviation of a pixel; glyphs are 0 to 1, so some letters cannot be told apart, and the loss has a floor


@functools.cache
def pictures() -> np.ndarray[Any, Any]:
    """(faces, classes, SIZE, SIZE), 0 to 1: every class in every face of the fonts, in the upper left corner.

    With their sizes in the last two places, (faces, classes, SIZE + 1, SIZE): row SIZE has height and width.
    """
    import matplotlib
    from matplotlib.ft2font import FT2Font

    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    faces = sorted(path for path in folder.glob("*.ttf") if path.stem.partition("-")[0].startswith(FONTS))
    faces = [path for path in faces if "Display" not in path.stem]  # which have no letters
    found = np.zeros((len(faces), len(CLASSES), SIZE + 1, SIZE), np.float32)
    for face, path in enumerate(faces):
        font = FT2Font(str(path))
        font.set_size(12, 72)
        for number, letter in enumerate(CLASSES):
            font.set_text(letter)
            font.draw_glyphs_to_bitmap(antialiased=True)
            picture = np.asarray(font.get_image())
            height, width = picture.shape
            found[face, number, :height, :width] = picture / np.float32(255)
            found[face, number, SIZE, :2] = height, width
    return found


def batch(seed: tuple[int, ...], count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Pictures (count, 1, SIZE, SIZE) at random places under noise, and their classes: the same for one seed."""
    random = np.random.default_rng(seed)
    drawn = pictures()
    faces, classes = random.integers(0, len(drawn), count), random.integers(0, len(CLASSES), count)
    chosen = drawn[faces, classes]
    free = SIZE - chosen[:, SIZE, :2].astype(int)
    down, right = random.integers(0, free + 1).T
    rows = (np.arange(SIZE) - down[:, None]) % SIZE
    columns = (np.arange(SIZE) - right[:, None]) % SIZE
    moved = chosen[np.arange(count)[:, None, None], rows[:, :, None], columns[:, None, :]]
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
