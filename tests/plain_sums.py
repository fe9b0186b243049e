"""Sums in the order that every backend keeps, written down a second time, one step after the other."""

import numpy as np

SEGMENT, TILE, LANES = 4096, 128, 256


def segment_sum(elements: np.ndarray) -> float:
    """Of at most 4,096 elements: 128 columns down the tiles, then four neighbours, then lanes in a butterfly."""
    padded = np.zeros(SEGMENT, elements.dtype)
    padded[: len(elements)] = elements
    columns = np.cumsum(padded.reshape(-1, TILE), axis=0)[-1] + elements.dtype.type(0)  # cumsum keeps the order
    lanes = np.array([(a + b) + (c + d) for a, b, c, d in columns.astype(np.float64).reshape(-1, 4)])
    for bits in (16, 8, 4, 2, 1):
        lanes = np.array([lanes[t] + lanes[t ^ bits] for t in range(32)])
    return float(lanes[0])


def segment_sums(elements: np.ndarray) -> list[float]:
    return [segment_sum(elements[first : first + SEGMENT]) for first in range(0, len(elements), SEGMENT)]


def total(segments: list[float]) -> np.float64:
    """Of the segments of a tensor or of a group: 256 lanes, then a tree."""
    lanes = [np.float64(sum(map(np.float64, segments[t::LANES]), np.float64(0))) for t in range(LANES)]
    while len(lanes) > 1:
        half = len(lanes) // 2
        lanes = [lanes[t] + lanes[t + half] for t in range(half)]
    return lanes[0]


def row_means(elements: np.ndarray) -> np.ndarray:
    """For each element the mean of its slice along the first axis."""
    means = np.zeros_like(elements)
    for row, mean in zip(elements, means):
        value = np.float64(0)
        for segment in segment_sums(row.ravel()):
            value += np.float64(segment)
        mean[...] = value / row.size if row.size else 0
    return means
