# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.transforms import Compose

from monai_labelfx.transforms.rand_slice_patch import RandSlicePatch, RandSlicePatchd


def _numbered(*shape: int) -> np.ndarray:
    return np.arange(np.prod(shape), dtype=np.float32).reshape(1, *shape)


def _origin(patch: torch.Tensor, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Where the first voxel of a patch of a numbered image lay."""
    return tuple(int(index) for index in np.unravel_index(int(patch.flatten()[0]), shape))


@pytest.mark.parametrize(("shape", "patch"), [((20, 17), (8, 6)), ((20, 17, 5), (8, 6)), ((12, 11, 10), (5, 4, 3))])
def test_cuts_a_piece_of_the_image(shape, patch):
    image = _numbered(*shape)
    transform = RandSlicePatch(patch).set_random_state(seed=2)
    seen = set()
    for _ in range(40):
        result = transform(image)
        start = _origin(result, shape)
        seen.add(start)
        piece = image[0][
            tuple(slice(a, a + n) for a, n in zip(start, patch, strict=False)) + tuple(start[len(patch) :])
        ]
        assert result.shape == (1, *patch) and np.array_equal(result[0].numpy(), piece)
    assert len(seen) > 20
    if len(shape) > len(patch):
        assert {start[-1] for start in seen} == set(range(shape[-1]))


def test_every_place_and_no_other():
    transform = RandSlicePatch((4,), margin=0).set_random_state(seed=0)
    places = {_origin(transform(_numbered(7)), (7,))[0] for _ in range(100)}
    assert places == {0, 1, 2, 3}
    transform = RandSlicePatch((4,), margin=2).set_random_state(seed=0)
    places = {_origin(transform(_numbered(10)), (10,))[0] for _ in range(100)}
    assert places == {2, 3, 4}
    places = {_origin(transform(_numbered(7)), (7,))[0] for _ in range(100)}
    assert places == {0, 1, 2, 3}, "no margin where the image is too small for it"


def test_small_images_are_repeated_at_the_edge():
    image = _numbered(3, 9)
    result = RandSlicePatch((6, 9))(image)
    assert torch.equal(result[0, :, 0], torch.tensor([0.0, 0, 9, 18, 18, 18]))
    whole = RandSlicePatch((6, 9))(torch.tensor([[[1, 2, 3] * 3]]))
    assert whole.dtype == torch.int64 and whole.shape == (1, 6, 9)


def test_containers_seed_and_keys():
    image = _numbered(20, 17, 4)
    first = RandSlicePatch((8, 8)).set_random_state(seed=5)(image)
    second = RandSlicePatch((8, 8)).set_random_state(seed=5)(torch.as_tensor(image))
    assert type(first) is torch.Tensor and torch.equal(first, second)
    assert not torch.equal(first, RandSlicePatch((8, 8)).set_random_state(seed=6)(image))
    twin = Compose([RandSlicePatchd(keys=["image", "mask"], patch_size=(8, 8))]).set_random_state(seed=1)
    item = twin({"image": image, "mask": image + 0.5})
    assert torch.equal(item["image"] + 0.5, item["mask"]), "all keys are cut at one place"


def test_bad_arguments():
    with pytest.raises(ValueError, match="patch_size must hold whole numbers"):
        RandSlicePatch(())
    with pytest.raises(ValueError, match="margin must be 0 or more voxels, got -1"):
        RandSlicePatch((4,), margin=-1)
    with pytest.raises(ValueError, match=r"with 2 or 3 spatial axes, got shape \(1, 5\)"):
        RandSlicePatch((4, 4))(_numbered(5))
