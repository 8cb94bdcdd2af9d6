"""Measures of drawings, against sets whose answer is known."""

import pytest
import torch

from gentok.metrics.drawings import nearest_picture, overlap, shares


def pictures(*boxes):
    out = torch.ones(len(boxes), 1, 8, 8)
    for picture, (top, bottom, left, right) in zip(out, boxes):
        picture[0, top:bottom, left:right] = -1
    return out


def test_overlap_is_intersection_over_union():
    a, b = pictures((0, 4, 0, 4), (0, 4, 0, 4), (0, 0, 0, 0)), pictures((0, 4, 2, 6), (4, 8, 4, 8), (0, 0, 0, 0))
    assert overlap(a, b).tolist() == pytest.approx([8 / 24, 0.0, 1.0])


def test_the_nearest_picture_is_the_one_of_the_least_distance():
    known = pictures((0, 4, 0, 4), (0, 8, 0, 8), (6, 8, 6, 8))
    made = pictures((0, 4, 0, 5), (6, 8, 6, 8), (0, 7, 0, 8))
    distance, index = nearest_picture(made, known, chunk=2)
    assert index.tolist() == [0, 2, 1] and distance.tolist() == pytest.approx([1 - 16 / 20, 0.0, 1 - 56 / 64])
    assert torch.allclose(distance, 1 - overlap(made, known[index]))


def test_shares_of_valid_different_and_new_drawings():
    got = shares(["a", "a", "b", "c", "x"], [True, True, True, True, False], ["b", "z"])
    assert got == {"validity": 0.8, "uniqueness": 0.75, "novelty": 0.75}
    assert shares([], [], []) == {"validity": 0.0, "uniqueness": 0.0, "novelty": 0.0}
