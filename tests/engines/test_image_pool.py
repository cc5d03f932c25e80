# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import io

import pytest
import torch
from monai.data import MetaTensor

from monai_labelfx.engines.image_pool import ImagePool


def images(*numbers: float) -> torch.Tensor:
    return torch.tensor(numbers, dtype=torch.float32).reshape(-1, 1, 1, 1).expand(-1, 1, 2, 2).clone()


def numbers(batch) -> list[float]:
    return [float(image.mean()) for image in batch]


def test_fills_first_and_passes_everything_on():
    pool = ImagePool(3, probability=1.0)
    assert numbers(pool(images(1, 2))) == [1, 2] and len(pool) == 2
    batch = numbers(pool(images(3, 4)))
    assert batch[0] == 3 and batch[1] in (1, 2, 3) and len(pool) == 3
    assert set(numbers(pool.state_dict()["images"])) == {1, 2, 3, 4} - {batch[1]}, "the new one took its place"


def test_nothing_is_lost_and_nothing_comes_twice_at_once():
    """Of all images that ever came, each is in the pool or was returned; those that were swapped come back once."""
    torch.manual_seed(0)
    pool, returned = ImagePool(5, probability=1.0), []
    for start in range(0, 60, 3):
        returned += numbers(pool(images(start, start + 1, start + 2)))
    kept = numbers(pool.state_dict()["images"])
    later = returned[5:]  # while it fills, images are returned and also kept
    assert sorted(later + kept) == sorted([*range(60)]), "p = 1: every image enters, and leaves at most once"


def test_half_of_the_images_are_old():
    torch.manual_seed(1)
    pool = ImagePool(10)
    pool(images(*range(10)))
    fresh = sum(numbers(pool(images(n)))[0] == n for n in range(10, 2010))
    assert 900 < fresh < 1100
    ages = [n - numbers(pool(images(n)))[0] for n in range(2010, 4010)]
    assert 17 < sum(ages) / sum(age > 0 for age in ages) < 23, "each place is as likely: 20 images old in the mean"


def test_limits():
    batch = images(1, 2, 3).requires_grad_()
    empty = ImagePool(0)
    assert torch.equal(empty(batch), batch) and not empty(batch).requires_grad and len(empty) == 0
    never = ImagePool(1, probability=0.0)
    assert numbers(never(batch)) == [1, 2, 3] == numbers(never(images(1, 2, 3))) and len(never) == 1


def test_state_resumes_exactly_and_images_are_copies():
    torch.manual_seed(2)
    pool, other = ImagePool(2), ImagePool(2)
    batch = images(1, 2)
    pool(batch)
    batch.zero_()
    assert numbers(pool.state_dict()["images"]) == [1, 2]
    state = torch.load(_saved(pool), weights_only=True)
    other.load_state_dict(state)
    results = []
    for one in (pool, other):
        torch.manual_seed(3)
        results.append([numbers(one(images(n, n + 0.5))) for n in range(5, 15)])
    assert results[0] == results[1]
    empty = ImagePool(2)
    empty.load_state_dict(ImagePool(2).state_dict())
    assert len(empty) == 0


def _saved(pool: ImagePool) -> io.BytesIO:
    file = io.BytesIO()
    torch.save(pool.state_dict(), file)
    file.seek(0)
    return file


def test_kind_of_images_is_kept():
    pool = ImagePool(1, probability=1.0)
    pool(MetaTensor(images(1)).half())
    batch = pool(MetaTensor(torch.ones(2, 1, 2, 2, dtype=torch.float64)))
    assert batch.dtype == torch.float64 and type(batch) is torch.Tensor
    volumes = ImagePool(2)
    assert volumes(torch.zeros(2, 1, 3, 4, 5)).shape == (2, 1, 3, 4, 5)


def test_bad_input():
    for size in (-1, 1.5, True):
        with pytest.raises(ValueError, match="size must be a whole number of 0 or more"):
            ImagePool(size)
    with pytest.raises(ValueError, match="probability must be from 0 to 1, got 1.5"):
        ImagePool(probability=1.5)
    pool = ImagePool(1)
    pool(images(1))
    with pytest.raises(ValueError, match=r"shape \(1, 1, 3\), but the pool keeps images of \(1, 2, 2\)"):
        pool(torch.zeros(1, 1, 3))
    with pytest.raises(ValueError, match="pool of size 1 must hold up to that many images, got 2 images"):
        pool.load_state_dict({"images": [1, 2]})
    with pytest.raises(ValueError, match="got \\['image'\\]"):
        pool.load_state_dict({"image": []})
