# SPDX-License-Identifier: Apache-2.0
"""Tests of run lengths against strings of pycocotools 2.0.11, hand cases and a walk over the voxels."""

from __future__ import annotations

import importlib
import json

import numpy as np
import pytest
import torch

from monai_labelfx.ops.run_length import decode_run_lengths, encode_run_lengths

module = importlib.import_module("monai_labelfx.ops.run_length")


def disc(shape: tuple[int, ...], centre: tuple[int, ...], radius: int) -> np.ndarray:
    squares = [(axis - c) ** 2 for axis, c in zip(np.indices(shape), centre, strict=True)]
    return sum(squares) < radius**2


def pattern(shape: tuple[int, ...]) -> np.ndarray:
    n = np.arange(np.prod(shape))
    return ((n * n * 7 + n * 3) % 11 < 4).reshape(shape)


# what pycocotools.mask.encode returns for the picture, rows first
PUBLISHED = {
    "disc": (disc((40, 30), (20, 12), 9), [30, 40], "`;9d02N2N2N2O0000000000000001N2N2N2NS:"),
    "pattern": (
        pattern((9, 8)),
        [8, 9],
        "0110010O000000010O000000010O000000010O000000010O000000010O00000001",
    ),
    "large": (
        disc((300, 200), (10, 100), 150),
        [200, 300],
        "0`jg01g[XO1N2N2N2N3L3N2N3L3N2N3L3N3L3N3L3N3L4L3N3L4L4L4L4L4L5J5L5J5L5J6J7H7J7H9F:F<BdXk0",
    ),
    "none": (np.zeros((3, 4), bool), [4, 3], "<"),
    "all": (np.ones((3, 4), bool), [4, 3], "0<"),
    "one voxel": (np.ones((1, 1), bool), [1, 1], "01"),
}


def naive_lengths(mask: np.ndarray) -> list[int]:
    lengths, state = [0], False
    for inside in mask.ravel().tolist():
        if inside != state:
            lengths.append(0)
            state = inside
        lengths[-1] += 1
    return lengths


def naive_number(value: int) -> str:
    """Two's complement in groups of 5 bits, lowest first."""
    bits = 5
    while not -(1 << (bits - 1)) <= value < 1 << (bits - 1):
        bits += 5
    groups = [(value >> at) & 31 for at in range(0, bits, 5)]
    return "".join(chr(48 + g + (32 if n + 1 < len(groups) else 0)) for n, g in enumerate(groups))


@pytest.mark.parametrize("name", PUBLISHED)
def test_strings_of_pycocotools(name):
    mask, size, counts = PUBLISHED[name]
    assert encode_run_lengths(mask[None]) == [{"size": size, "counts": counts}]
    for given in (counts, counts.encode(), naive_lengths(mask), np.array(naive_lengths(mask))):
        found = decode_run_lengths([{"size": size, "counts": given}])
        assert found.dtype == torch.bool and torch.equal(found, torch.from_numpy(mask[None]))


@pytest.mark.parametrize("shape", [(17,), (13, 7), (5, 6, 7), (3, 2, 4, 3)])
@pytest.mark.parametrize("share", [0.02, 0.5, 0.97])
def test_any_number_of_axes(shape, share):
    masks = np.random.RandomState(len(shape)).rand(4, *shape) < share
    rows = encode_run_lengths(torch.from_numpy(masks))
    for mask, row in zip(masks, rows, strict=True):
        lengths = naive_lengths(mask)
        differences = [n - (lengths[i - 2] if i > 2 else 0) for i, n in enumerate(lengths)]
        assert row == {"size": list(shape[::-1]), "counts": "".join(map(naive_number, differences))}
    assert torch.equal(decode_run_lengths(json.loads(json.dumps(rows))), torch.from_numpy(masks))


def test_numbers_of_every_length():
    numbers = [0, 15, 16, -16, -17, 511, 512, -512, -513, 2**30, -(2**40), 2**59 - 1, -(2**59)]
    for number in numbers:
        assert module.compressed_counts(np.array([number])) == naive_number(number)
        assert module._from_characters(naive_number(number), "x").tolist() == [number]


def test_kinds_of_masks():
    mask = pattern((6, 5))[None]
    expected = encode_run_lengths(mask)
    for same in (torch.from_numpy(mask), mask.astype(np.uint8) * 255, -mask.astype(np.int32)):
        assert encode_run_lengths(same) == expected
    turned = np.asfortranarray(mask[0])[None]
    assert encode_run_lengths(turned) == expected
    assert expected[0]["size"] == [5, 6]  # rows first


def test_no_masks():
    assert encode_run_lengths(np.zeros((0, 3, 4), bool)) == []
    assert decode_run_lengths([], [4, 3]).shape == (0, 3, 4)
    with pytest.raises(ValueError, match=r"run_lengths is empty: size must tell the lengths of the axes then\."):
        decode_run_lengths([])
    nothing = np.zeros((2, 0, 4), bool)
    assert torch.equal(decode_run_lengths(encode_run_lengths(nothing)), torch.from_numpy(nothing))


def test_masks_that_are_none():
    with pytest.raises(TypeError, match="masks must be bool or whole numbers, got float32"):
        encode_run_lengths(torch.zeros(1, 3, 3))
    with pytest.raises(ValueError, match=r"masks must have the shape \(N, \*spatial\), got \(3,\)"):
        encode_run_lengths(np.zeros(3, bool))


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ("223", r"of run_lengths\[1\] must be runs of 6 voxels together, got 3 runs of 2 to 3 voxels, 7 together\."),
        ([2, 2], "must be runs of 6 voxels together, got 2 runs of 2 to 2 voxels, 4 together"),
        ([3, -1, 4], "got 3 runs of -1 to 4 voxels, 6 together"),
        ([], "got 0 runs of 6 to 0 voxels, 0 together"),
        ("2 2", r"have b' ' at 1, expected characters '0' to 'o'"),
        ("22p", "have b'p' at 2"),
        ("22\u00e9", r"have b'\\xc3' at 2"),
        ("22R", "end within a number after 3 characters"),
        ("", "end within a number after 0 characters"),
        ("P" * 12 + "0", "have a number of 13 characters, at most 12 are one"),
    ],
)
def test_counts_that_are_none(counts, message):
    good = {"size": [3, 2], "counts": "222"}
    with pytest.raises(ValueError, match=message):
        decode_run_lengths([good, {"size": [3, 2], "counts": counts}])


def test_other_bad_input():
    good = {"size": [3, 2], "counts": "222"}
    with pytest.raises(ValueError, match=r"the size of run_lengths\[1\] is \[2, 3\], expected \[3, 2\]"):
        decode_run_lengths([good, {"size": [2, 3], "counts": "222"}])
    with pytest.raises(ValueError, match=r"the size of run_lengths\[0\] is \[3, 2\], expected \[4, 2\]"):
        decode_run_lengths([good], [4, 2])
    with pytest.raises(ValueError, match=r"run_lengths\[1\] has no 'counts', found \['size'\]"):
        decode_run_lengths([good, {"size": [3, 2]}])
    for size in ([-3, 2], []):
        with pytest.raises(ValueError, match="size must be the lengths of the axes, 0 or above"):
            decode_run_lengths([{"size": size, "counts": "0"}])
