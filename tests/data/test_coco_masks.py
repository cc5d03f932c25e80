# SPDX-License-Identifier: Apache-2.0
"""Masks of COCO files: any kind of segmentation in, run lengths out, and clear sentences for the rest."""

from __future__ import annotations

import json
import warnings

import numpy as np
import pytest
import torch

from monai_labelfx.data._coco_masks import read_segmentation, segmentations, tight_box
from monai_labelfx.data.coco_json import load_coco
from monai_labelfx.data.polygon_masks import polygons_to_mask
from monai_labelfx.ops.run_length import decode_run_lengths, encode_run_lengths

SIZE = (20, 13)  # x, y
OUTLINE = [[3, 1, 9, 1, 9, 11, 3, 6]]
MASK = polygons_to_mask(OUTLINE, SIZE)
LENGTHS = encode_run_lengths(MASK[None])[0]


def uncompressed(mask: np.ndarray) -> dict:
    """Run lengths as COCO's own files have them, counted one by one down the columns."""
    counts, inside = [0], False
    for value in mask.ravel().tolist():
        if value != inside:
            counts, inside = [*counts, 0], value
        counts[-1] += 1
    return {"size": [mask.shape[1], mask.shape[0]], "counts": counts}


@pytest.mark.parametrize("segmentation", [OUTLINE, LENGTHS, uncompressed(MASK)], ids=["outline", "text", "counts"])
def test_any_kind(segmentation):
    lengths, box = read_segmentation({"segmentation": segmentation}, SIZE, "it")
    assert lengths == LENGTHS and box == [3, 1, 9, 11]
    assert np.array_equal(decode_run_lengths([lengths])[0].numpy(), MASK)


def test_tight_boxes_in_any_dimensions():
    mask = np.zeros((5, 6, 7), bool)
    assert tight_box(mask) is None
    mask[1, 2, 3] = mask[3, 2, 5] = True
    assert tight_box(mask) == [1, 2, 3, 4, 3, 6] and tight_box(mask[1]) == [2, 3, 3, 4]


@pytest.mark.parametrize(
    "segmentation,message",
    [
        (None, "it has no segmentation, and masks=True needs one in each annotation"),
        ([], "it has no segmentation"),
        ("", "it has no segmentation"),
        ("abc", "segmentation of it must be polygons or run lengths, found 'abc'"),
        (7, "segmentation of it must be polygons or run lengths, found 7"),
        ([[1, 2, 3, 4]], r"segmentation of it: polygons\[0\] must be .* three points or more"),
        ([3, 1, 9, 1, 9, 11], r"segmentation of it: polygons\[0\] must be"),
        (LENGTHS | {"size": [20, 13]}, r"has the size \[height, width\] \[20, 13\], but the image \[13, 20\]"),
        (LENGTHS | {"size": [13]}, r"must be run lengths with size \[height, width\] and counts, found"),
        (LENGTHS | {"size": [13.0, 20]}, "must be run lengths with size"),
        (LENGTHS | {"size": [2**40, 2**40]}, "must be run lengths with size"),
        ({"size": [13, 20]}, "must be run lengths with size"),
        ({"counts": "abc"}, "must be run lengths with size"),
        (LENGTHS | {"counts": [1.5, 258.5]}, "must be run lengths with size"),
        (LENGTHS | {"counts": [260, -1, 1]}, "segmentation of it: the counts"),
        (LENGTHS | {"counts": [10**30]}, "segmentation of it: "),
        (LENGTHS | {"counts": [7]}, "segmentation of it: the counts"),
        (LENGTHS | {"counts": "rubbish"}, "segmentation of it: the counts"),
        (LENGTHS | {"counts": LENGTHS["counts"][:-1]}, "segmentation of it: the counts"),
        (LENGTHS | {"counts": "\u4e16 \n"}, "segmentation of it: the counts"),
        (LENGTHS | {"counts": "o" * 50}, "segmentation of it: the counts"),
    ],
)
def test_unusable_segmentations(segmentation, message):
    with pytest.raises(ValueError, match=message) as caught:
        read_segmentation({"segmentation": segmentation}, SIZE, "it")
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 300


@pytest.mark.parametrize("size", [None, (0, 5), (5, -1), (2**20, 2**20)])
def test_unusable_sizes(size):
    with pytest.raises(ValueError, match="masks need the width and height of the image of it, found"):
        read_segmentation({"segmentation": OUTLINE}, size, "it")


def write(folder, annotations, **image) -> str:
    images = [{"id": 1, "file_name": "a.png", "width": 20, "height": 13} | image, {"id": 2, "file_name": "b.png"}]
    rows = [{"image_id": 1, "category_id": 4} | annotation for annotation in annotations]
    path = folder / "masks.json"
    path.write_text(json.dumps({"images": images, "annotations": rows, "categories": [{"id": 4, "name": "lung"}]}))
    return str(path)


GOOD = {"bbox": [3, 1, 6, 10], "segmentation": OUTLINE}


def test_a_file_with_masks(tmp_path):
    other = {"segmentation": [[4, 2, 9, 2, 9, 9, 4, 9]], "bbox": [5, 1, 4, 10]}
    rows = [GOOD, GOOD | {"segmentation": LENGTHS}, GOOD | {"segmentation": uncompressed(MASK)}, other]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        items = load_coco(write(tmp_path, rows), masks=True).items
    assert items[0]["segmentation"][:3] == [LENGTHS] * 3 and items[0]["box"][3] == [5, 1, 9, 11]
    assert np.argwhere(decode_run_lengths(items[0]["segmentation"])[3].numpy()).min(0).tolist() == [4, 2]
    assert items[1]["segmentation"] == items[1]["box"] == []
    assert json.loads(json.dumps(items)) == items
    plain = load_coco(write(tmp_path, rows)).items
    assert plain == [{key: value for key, value in item.items() if key != "segmentation"} for item in items]


def test_objects_without_pixels_crowds_and_loose_boxes_are_counted(tmp_path):
    crowd = GOOD | {"iscrowd": 1, "segmentation": "whatever it is"}
    speck = GOOD | {"segmentation": [[3.6, 1.6, 4.4, 1.6, 4, 2.4]]}
    loose = GOOD | {"bbox": [3, 1, 6.5, 11]}
    with pytest.warns(UserWarning) as caught:
        items = load_coco(write(tmp_path, [crowd, GOOD, speck, loose]), masks=True).items
    assert len(items[0]["segmentation"]) == len(items[0]["box"]) == len(items[0]["box_label"]) == 2
    (message,) = [str(one.message) for one in caught]
    assert message.endswith("dropped 2 boxes (1 crowds, 1 without a pixel in their mask) of 'a.png'.")
    with pytest.warns(UserWarning, match="2 masks are off their bbox by more than 3 pixels, up to 5, of 'a.png'."):
        rows = [
            GOOD | {"bbox": [3, 1, *size]} for size in ((11, 10), (10, 10), (9, 10), (6, 60))
        ]  # the last is cut at 13
        load_coco(write(tmp_path, rows), masks=True)


def test_bad_masks_name_file_and_image(tmp_path):
    def refused(match: str, annotation: dict, **image) -> None:
        path = write(tmp_path, [GOOD, annotation], **image)
        with pytest.raises(ValueError, match=match) as caught:
            load_coco(path, masks=True)
        assert "\n" not in str(caught.value) and "masks.json" in str(caught.value)
        load_coco(path)

    refused(r"annotations\[1\] of 'a.png' has no segmentation, and masks=True", {"bbox": [3, 1, 6, 10]})
    refused(r"annotations\[1\] of 'a.png': polygons\[0\] must be", GOOD | {"segmentation": [[1, 2]]})
    refused(r"has the size .* \[13, 20\], but the image \[12, 20\]", GOOD | {"segmentation": LENGTHS}, height=12)
    refused(
        r"in \[3, 1, 9, 11\], which does not meet its bbox \[10.0, 1.0, 16.0, 11.0\]", GOOD | {"bbox": [10, 1, 6, 10]}
    )
    path = write(tmp_path, [GOOD | {"image_id": 2}])
    with pytest.raises(
        ValueError, match=r"the width and height of the image of annotations\[0\] of 'b.png', found None"
    ):
        load_coco(path, masks=True)


def test_masks_of_detections():
    boxes = np.array([[3.0, 1, 9, 11], [2.5, 0, 6.2, 3]])
    other = np.zeros(SIZE, bool)
    other[2:7, 1:3] = True
    wanted = [(LENGTHS, int(MASK.sum())), (encode_run_lengths(other[None])[0], 10)]
    whole = np.stack([MASK, other])
    crops = [torch.from_numpy(MASK[3:9, 1:11]), torch.from_numpy(other[2:7, 0:3])]
    for found in (
        {"masks": whole},
        {"masks": torch.from_numpy(whole).to(torch.uint8)},
        {"masks": crops},
        {"segmentation": [LENGTHS, wanted[1][0]]},
    ):
        assert segmentations(found, boxes, SIZE, "it") == wanted
    assert segmentations({"masks": whole}, boxes, None, "it") == wanted
    assert segmentations({}, boxes, SIZE, "it") is None
    for empty in ({"masks": torch.zeros(0, *SIZE, dtype=torch.bool)}, {"masks": []}, {"segmentation": []}):
        assert segmentations(empty, boxes[:0], SIZE, "it") == []
    below = segmentations({"masks": [np.ones((2, 3), bool)]}, np.array([[-0.7, 4.2, 2, 6.5]]), SIZE, "it")
    assert tight_box(decode_run_lengths([below[0][0]])[0].numpy()) == [0, 4, 2, 7]


@pytest.mark.parametrize(
    "found,size,error,message",
    [
        ({"masks": MASK[None] * 0.5}, SIZE, TypeError, "masks of it must be bool or whole numbers, got float64"),
        ({"masks": [MASK * 0.5]}, SIZE, TypeError, "masks of it must be bool or whole numbers, got float64"),
        ({"masks": MASK[None].repeat(2, 0)}, SIZE, ValueError, "masks of it must be one for each of 1 boxes, got 2"),
        ({"masks": MASK.T[None]}, SIZE, ValueError, r"must have the shape .N, 20, 13., got .1, 13, 20."),
        ({"masks": MASK[None, None]}, None, ValueError, r"must have the shape .N, x, y., got .1, 1, 20, 13."),
        ({"masks": [MASK[3:9]]}, None, ValueError, "masks of it are crops and need the size of the image: give shapes"),
        ({"masks": [MASK]}, SIZE, ValueError, r"a crop of it has the shape .20, 13. at .3, 1., which the image"),
        ({"segmentation": []}, SIZE, ValueError, "segmentation of it must be one for each of 1 boxes, got 0"),
        ({"segmentation": [LENGTHS]}, (13, 20), ValueError, "segmentation 0 of it has the size"),
        ({"segmentation": [OUTLINE]}, SIZE, ValueError, "segmentation 0 of it must be run lengths with size"),
    ],
)
def test_unusable_masks_of_detections(found, size, error, message):
    with pytest.raises(error, match=message):
        segmentations(found, np.array([[3.0, 1, 9, 11]]), size, "it")
