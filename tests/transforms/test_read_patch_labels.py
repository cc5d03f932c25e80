# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pickle

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import CacheDataset, MetaTensor
from monai.transforms import Compose, Flipd, LoadImaged, Orientationd, Rotated, Spacingd, SpatialPadd
from PIL import Image

from monai_labelfx.transforms.grid_patch_labels import GridPatchLabelsd
from monai_labelfx.transforms.read_patch_labels import ReadPatchLabelsd

HEADER_2 = "x,y,width,height,class_0,class_1"
HEADER_3 = "x,y,z,width,height,depth,class_0,class_1"


@pytest.fixture
def table(tmp_path):
    def write(*lines: str):
        path = tmp_path / "ticks.csv"
        path.write_text("\n".join(lines))
        return str(path)

    return write


def inside(item) -> torch.Tensor:
    """The first patch of an item as a mask of its image."""
    ndim = item["image"].ndim - 1
    mask = torch.zeros(item["image"].shape, dtype=torch.bool)
    row = item["patches"][0].tolist()
    mask[(slice(None), *(slice(s, s + n) for s, n in zip(row[:ndim], row[ndim:], strict=True)))] = True
    return mask


@pytest.mark.parametrize("kind", ["numpy", "tensor", "metatensor"])
def test_each_container(table, kind):
    image = np.zeros((3, 12, 10), np.float32)
    image = {"numpy": image, "tensor": torch.from_numpy(image), "metatensor": MetaTensor(image)}[kind]
    twin = pickle.loads(pickle.dumps(ReadPatchLabelsd(classes=["stroma", "gland"])))
    item = {"image": image, "patches": table("x,y,width,height,stroma,gland,gland_cluster", "2,3,10,7,1,?,4"), "id": 1}
    found = CacheDataset([item], twin, progress=False)[0]
    assert found["patches"].tolist() == [[2, 3, 10, 7]] and found["patch_labels"].tolist() == [[1, -1]]
    assert found["sub_labels"].tolist() == [[-1, 4]] and found["id"] == 1 and isinstance(item["patches"], str)
    assert not {type(found[key]) for key in ("patches", "patch_labels", "sub_labels")} - {torch.Tensor}


def test_x_of_a_picture_goes_to_the_right(table, tmp_path):
    picture = np.zeros((8, 12, 3), np.uint8)
    picture[5:7, 1:4] = 255  # rows 5 and 6, columns 1 to 3
    Image.fromarray(picture).save(tmp_path / "a.png")
    chain = Compose([LoadImaged("image", ensure_channel_first=True), ReadPatchLabelsd()])
    found = chain({"image": tmp_path / "a.png", "patches": table(f"image,{HEADER_2}", "a.png,1,5,3,2,0,1")})
    assert torch.equal(inside(found), torch.as_tensor(found["image"] > 0))


@pytest.mark.parametrize("spatial", [[], [Flipd("image", 1)], [SpatialPadd("image", (40, 40, 30))]])
def test_patches_follow_a_volume_that_is_reoriented_and_moved(table, tmp_path, spatial):
    volume = np.zeros((20, 24, 10), np.float32)
    volume[2:8, 3:9, 1:5] = 1
    affine = np.array([[-1, 0, 0, 5], [0, 0, 3, 2], [0, 2, 0, 1], [0, 0, 0, 1.0]])
    nib.save(nib.Nifti1Image(volume, affine), tmp_path / "a.nii.gz")
    load, read = LoadImaged("image", ensure_channel_first=True), ReadPatchLabelsd()
    item = {"image": tmp_path / "a.nii.gz", "patches": table(HEADER_3, "2,3,1,6,6,4,0,1")}
    axes = (("L", "R"), ("P", "A"), ("I", "S"))
    found = Compose([load, Orientationd("image", "RAS", labels=axes), *spatial, read])(item)
    assert torch.equal(inside(found), torch.as_tensor(found["image"] > 0))


def test_patches_follow_a_volume_that_is_resampled(table, tmp_path):
    volume = np.zeros((20, 24, 10), np.float32)
    volume[2:8, 3:9, 6:10] = 1  # up to the end of an axis
    nib.save(nib.Nifti1Image(volume, np.diag([1.0, 1, 5, 1])), tmp_path / "a.nii.gz")
    load, space = LoadImaged("image", ensure_channel_first=True), Spacingd("image", (2, 0.5, 1))
    item = {"image": tmp_path / "a.nii.gz", "patches": table(HEADER_3, "2,3,6,6,6,4,0,1")}
    found = Compose([load, space, ReadPatchLabelsd()])(item)
    object_, patch = torch.as_tensor(found["image"] > 0.5), inside(found)
    assert float((object_ & patch).sum() / (object_ | patch).sum()) > 0.7
    for axis in range(1, 4):
        others = [other for other in range(4) if other != axis]
        lines = [one.any(others).nonzero()[:, 0] for one in (object_, patch)]
        assert all(abs(int(a - b)) <= 1 for a, b in zip(*((line[0], line[-1]) for line in lines), strict=True))


def test_an_oblique_image_and_a_cut_off_patch_are_refused(table):
    image = MetaTensor(torch.zeros(1, 20, 20), affine=torch.eye(4))
    image.meta["original_affine"] = np.eye(4)
    item = {"image": image, "patches": table(HEADER_2, "10,10,4,4,0,1", "0,0,4,4,0,1")}
    assert ReadPatchLabelsd()(item)["patches"].tolist() == [[10, 10, 4, 4], [0, 0, 4, 4]]
    turned = Rotated("image", 0.3)(item)
    with pytest.raises(ValueError, match="lies obliquely to its file.*put ReadPatchLabelsd before rotations"):
        ReadPatchLabelsd()(turned)
    shifted = image.clone()
    shifted.affine = torch.tensor([[1.0, 0, 0, 6], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])  # cut off 6 voxels
    with pytest.raises(ValueError, match=r"line 3, columns 'x' and 'width'.*as it has been moved since it was loaded"):
        ReadPatchLabelsd()({**item, "image": shifted})


@pytest.mark.parametrize(("row", "column"), [("5,0,8,4,1,0", "'x' and 'width'"), ("0,7,8,4,1,0", "'y' and 'height'")])
def test_a_patch_outside_the_image_is_named(table, row, column):
    with pytest.raises(ValueError, match=rf"ticks.csv', line 3, columns {column}: the patch must lie in the image"):
        ReadPatchLabelsd()({"image": torch.zeros(3, 12, 10), "patches": table(HEADER_2, "0,0,8,4,1,0", row)})


def test_bad_items_are_named(table):
    path = table(HEADER_2, "0,0,4,4,1,0")
    with pytest.raises(ValueError, match="has columns for 2 axes, but the image has 3: a volume needs z and depth"):
        ReadPatchLabelsd()({"image": torch.zeros(1, 5, 5, 5), "patches": path})
    with pytest.raises(KeyError, match="ReadPatchLabelsd: the item has no 'image'"):
        ReadPatchLabelsd()({"patches": path})
    with pytest.raises(KeyError):
        ReadPatchLabelsd()({"image": torch.zeros(1, 5, 5)})
    with pytest.raises(ValueError, match="'patches' must be the path of a table of patch labels, got Tensor"):
        ReadPatchLabelsd()({"image": torch.zeros(1, 5, 5), "patches": torch.zeros(1, 4)})
    with pytest.raises(ValueError, match="classes must be"):
        ReadPatchLabelsd(classes=1)


def test_tables_and_masks_in_one_datalist(table):
    ticked = {"image": torch.zeros(1, 8, 8), "patches": table(HEADER_2, "0,0,4,4,1,0")}
    masked = {"image": torch.zeros(1, 8, 8), "label": torch.zeros(1, 8, 8)}
    chain = Compose([ReadPatchLabelsd(allow_missing_keys=True), GridPatchLabelsd(patch_size=8)])
    assert [chain(item)["patches"].tolist() for item in (ticked, masked)] == [[[0, 0, 4, 4]], [[0, 0, 8, 8]]]
