# SPDX-License-Identifier: Apache-2.0
"""Masks whose colours are classes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import LoadImaged
from PIL import Image

from monai_labelfx.transforms.colours_to_classes import ColoursToClasses, ColoursToClassesd

PALETTE = {"#000000": 0, "#00FF00": 1, (255, 0, 0): 2, "0000ff": 2, (1, 2, 3): 200}
COLOURS = {(0, 0, 0): 0, (0, 255, 0): 1, (255, 0, 0): 2, (0, 0, 255): 2, (1, 2, 3): 200}


def reference(mask: np.ndarray, unknown: int = -1) -> np.ndarray:
    flat = mask.reshape(mask.shape[0], -1)
    classes = [COLOURS.get(tuple(int(v) for v in flat[:3, n]), unknown) for n in range(flat.shape[1])]
    return np.array(classes).reshape(1, *mask.shape[1:])


@pytest.mark.parametrize("shape", [(7, 5), (4, 3, 5)])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.int16, torch.float64])
def test_against_a_loop(shape, dtype):
    generator = np.random.default_rng(0)
    colours = np.array(list(COLOURS))
    mask = np.moveaxis(colours[generator.integers(0, len(colours), shape)], -1, 0)
    for array in (mask, np.concatenate([mask, generator.integers(0, 255, (1, *shape))])):  # with alpha
        out = ColoursToClasses(PALETTE)(torch.as_tensor(array).to(dtype))
        assert out.dtype == torch.uint8 and (np.asarray(out) == reference(array)).all()
    out = ColoursToClasses(PALETTE)(mask.astype(np.uint8))
    assert isinstance(out, np.ndarray) and out.shape == (1, *shape)


def test_grey_masks_and_many_classes():
    mask = torch.tensor([[[0, 255], [255, 7]]], dtype=torch.uint8)
    grey = ColoursToClasses({"#000000": 0, "#ffffff": 1, (7, 7, 7): 300})
    assert grey(mask).tolist() == [[[0, 1], [1, 300]]] and grey(mask).dtype == torch.int16
    assert (grey(torch.cat([mask, torch.full_like(mask, 9)])) == grey(mask)).all(), "grey with alpha"
    affine = torch.diag(torch.tensor([2.0, 3.0, 1.0, 1.0]))
    kept = grey(MetaTensor(mask, affine=affine))
    assert isinstance(kept, MetaTensor) and (kept.affine == affine).all()
    assert mask.tolist() == [[[0, 255], [255, 7]]]


def test_unknown_colours_are_an_error_or_a_class():
    mask = torch.zeros(3, 4, 4)
    mask[0, 0] = 250.0
    mask[1, 1, 1] = 9.0
    with pytest.raises(
        ValueError, match="has the colour #fa0000 at 4 pixels and 1 more colours, expected only those of"
    ):
        ColoursToClasses({"#000000": 0, "#ff0000": 1})(mask)
    out = ColoursToClasses({"#000000": 0, "#ff0000": 1}, unknown=255)(mask)
    assert out[0, 0].tolist() == [255] * 4 and int((out == 255).sum()) == 5 and out.dtype == torch.uint8
    with pytest.raises(ValueError, match="the colour #010101 at 1 pixels, expected"):
        ColoursToClasses({"#000000": 0})(torch.tensor([[[1, 0]]]))


def test_bad_masks_and_palettes():
    for mask in (torch.zeros(5, 2, 2), torch.zeros(2)):
        with pytest.raises(ValueError, match="1 to 4 channels, got shape"):
            ColoursToClasses(PALETTE)(mask)
    for value in (0.5, 256.0, -1.0):
        with pytest.raises(ValueError, match="no whole numbers of 0 to 255"):
            ColoursToClasses(PALETTE)(torch.full((3, 2, 2), value))
    for palette, match in (
        ({}, "a class for at least one colour"),
        ([("#000000", 0)], "a class for at least one colour"),
        ({"#00000": 0}, "'#rrggbb' or three whole numbers of 0 to 255, got '#00000'"),
        ({"red": 0}, "got 'red'"),
        ({(0, 0): 0}, r"got \(0, 0\)"),
        ({(0, 0, 256): 0}, r"got \(0, 0, 256\)"),
        ({"#ffffff": 1, (255, 255, 255): 2}, "names a colour twice"),
        ({"#ffffff": -1}, "whole numbers of 0 to 32767, got -1"),
        ({"#ffffff": 1.0}, "got 1.0"),
        ({"#ffffff": True}, "got True"),
    ):
        with pytest.raises(ValueError, match=match):
            ColoursToClasses(palette)
    with pytest.raises(ValueError, match="got 70000"):
        ColoursToClasses(PALETTE, unknown=70000)


def test_the_dictionary_twin_reads_a_picture(tmp_path):
    rgb = np.zeros((3, 5, 3), np.uint8)
    rgb[0, 4] = (0, 255, 0)
    Image.fromarray(rgb).save(tmp_path / "mask.png")
    item = {"label": str(tmp_path / "mask.png")}
    loaded = LoadImaged("label", reader="monai_labelfx.data.AutoReader", ensure_channel_first=True)(item)
    out = ColoursToClassesd("label", palette=PALETTE)(loaded)["label"]
    assert out.shape == (1, 5, 3) and out[0, 4, 0] == 1 and int(out.sum()) == 1, "axis 0 is x"
