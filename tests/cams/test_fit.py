# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
import torch
from monai.data import Dataset, MetaTensor

from monai_labelfx.cams._fit import patch_pair, train


def test_pair_is_plain_and_on_the_device():
    batch = {"image": MetaTensor(torch.zeros(2, 1, 4, 4)), "patch_label": torch.tensor([[1, 0], [0, -1]])}
    images, labels = patch_pair(batch, "meta")
    assert type(images) is torch.Tensor and images.device.type == labels.device.type == "meta"
    images, target = patch_pair({**batch, "sub_label": torch.tensor([[3, -1], [-1, -1]])}, dtype=torch.float64)
    assert images.dtype == torch.float64 and target["labels"].dtype == torch.int64
    assert target["sub_labels"].tolist() == [[3, -1], [-1, -1]]
    assert patch_pair({"image": batch["image"]})[1] is None
    other = {"a": batch["image"], "b": batch["patch_label"], "c": batch["patch_label"]}
    assert patch_pair(other, image_key="a", label_key="b", sub_key="c")[1].keys() == {"labels", "sub_labels"}


def test_wrong_batches_are_refused():
    images = torch.zeros(2, 1, 4, 4)
    with pytest.raises(KeyError, match="the batch has no 'image'; it has \\['patch_label'\\]"):
        patch_pair({"patch_label": torch.zeros(2, 2)})
    for labels in (torch.zeros(3, 2), torch.zeros(2)):
        with pytest.raises(ValueError, match="'patch_label' must hold one row of class labels for each of the 2"):
            patch_pair({"image": images, "patch_label": labels})
    with pytest.raises(ValueError, match="'sub_label' must hold one row"):
        patch_pair({"image": images, "patch_label": torch.zeros(2, 2), "sub_label": torch.zeros(2, 3)})


def test_training_returns_the_mean_loss_of_each_epoch_and_lowers_the_rate():
    network = torch.nn.Linear(1, 2)
    optimizer = torch.optim.SGD(network.parameters(), lr=1.0)
    seen, rates = [], []

    def loss(output, target):
        rates.append(optimizer.param_groups[0]["lr"])
        seen.append(output.square().mean() + target.float().mean())
        return seen[-1]

    items = [{"image": torch.full((1,), float(n)), "patch_label": torch.tensor([n % 2, 1])} for n in range(6)]
    epochs = train(
        network,
        loss,
        Dataset(items),
        max_epochs=2,
        batch_size=3,
        optimizer=optimizer,
        device=None,
        num_workers=0,
        seed=0,
    )
    values = [one.item() for one in seen]
    assert epochs == pytest.approx([sum(values[:2]) / 2, sum(values[2:]) / 2])
    assert rates == pytest.approx([(1 - step / 4) ** 0.9 for step in range(4)])
