# SPDX-License-Identifier: Apache-2.0
"""The contract of a provider of class activation maps: a test of one subclasses this and adds what its paper says."""

from __future__ import annotations

import copy

import pytest
import torch
from monai.data import DataLoader, Dataset, MetaTensor
from monai.engines import SupervisedTrainer
from monai.networks.layers.factories import Conv

from monai_labelfx.cams._fit import patch_pair


class SmallNetwork(torch.nn.Module):
    """Two convolutions and a last layer, of stride 4: what a provider needs, and no more."""

    def __init__(self, spatial_dims: int, in_channels: int = 1, classes: int = 2, width: int = 8) -> None:
        super().__init__()
        conv = Conv[Conv.CONV, spatial_dims]
        self.in_channels = in_channels
        self.first = conv(in_channels, width, 3, stride=2, padding=1)
        self.second = conv(width, width, 3, stride=2, padding=1)
        self.head = conv(width, classes, 1)

    def features(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(self.first(x).relu()).relu()


def squares(spatial_dims: int, count: int = 32, *, sub: bool = False) -> list[dict]:
    """Patches of noise: every other one holds a bright block (class 1), the others class 0."""
    side, block = (32, 12) if spatial_dims == 2 else (20, 10)
    generator = torch.Generator().manual_seed(1)
    items = []
    for number in range(count):
        image = 0.2 * torch.randn(1, *(side,) * spatial_dims, generator=generator)
        start = torch.randint(side - block, (spatial_dims,), generator=generator).tolist()
        if number % 2:
            image[(0, *(slice(s, s + block) for s in start))] += 2.0
        place = torch.tensor([start, [s + block for s in start]])
        item = {"image": image, "patch_label": torch.tensor([1 - number % 2, number % 2]), "place": place}
        if sub:
            item["sub_label"] = torch.tensor([number // 2 % 2 * (1 - number % 2) - number % 2, number % 2 - 1])
        items.append(item)
    return items


class CAMTester:
    """What every provider promises. A subclass gives ``make`` and may override the numbers below."""

    epochs = 12
    rate = 0.02
    sub = False

    def make(self, network: torch.nn.Module, **options) -> torch.nn.Module:
        """The provider, small."""
        raise NotImplementedError

    def small(self, spatial_dims: int, classes: int = 2, in_channels: int = 1, **options) -> torch.nn.Module:
        torch.manual_seed(0)
        return self.make(SmallNetwork(spatial_dims, in_channels, classes), **options)

    def images(self, spatial_dims: int, count: int = 3, channels: int = 1) -> torch.Tensor:
        return torch.randn(count, channels, *(16, 12, 20)[:spatial_dims])

    # --- shapes ----------------------------------------------------------------------------------------------------
    @pytest.mark.parametrize("scoring", ["competing", "foreground"])
    @pytest.mark.parametrize("spatial_dims", [2, 3])
    def test_shapes(self, spatial_dims, scoring):
        provider = self.small(spatial_dims, classes=3, in_channels=2, scoring=scoring).eval()
        assert (provider.classes, provider.spatial_dims, provider.out_channels) == (3, spatial_dims, 8)
        images = self.images(spatial_dims, channels=2)
        with torch.no_grad():
            assert provider(images).shape == (3, 3)
            assert provider.cam(images).shape == (3, 3, *(4, 3, 5)[:spatial_dims])
            assert provider.features(images).shape == (3, 8)

    def test_logits_are_the_mean_of_the_class_maps(self):
        provider = self.small(2).eval()
        images = self.images(2)
        maps = provider.network.head(provider.network.features(images))
        torch.testing.assert_close(provider(images), maps.mean((2, 3)))
        torch.testing.assert_close(provider.features(images), provider.network.features(images).mean((2, 3)))

    def test_works_in_one_dimension_and_on_one_voxel_maps(self):
        provider = self.small(1)
        signal = torch.randn(2, 1, 4)
        provider.loss(provider(signal), torch.tensor([[1, 0], [0, 1]])).backward()
        assert provider.cam(signal).shape == (2, 2, 1)

    # --- modes -----------------------------------------------------------------------------------------------------
    def test_cam_is_that_of_evaluation_mode_and_leaves_the_mode_alone(self):
        provider = self.small(2)
        provider.network.first.register_forward_hook(
            lambda part, _, found: found * torch.rand(1) if part.training else found
        )
        provider.train()
        provider.network.second.eval()  # as a frozen part
        images = self.images(2)
        with torch.no_grad():
            first, again = provider.cam(images), provider.cam(images)
            provider.features(images)
        assert torch.equal(first, again)
        assert provider.training and provider.network.first.training and not provider.network.second.training

    def test_cam_leaves_parameters_and_their_gradients_alone(self):
        provider = self.small(2)
        provider.network.first.weight.requires_grad_(False)
        before = copy.deepcopy(provider.state_dict())
        provider.cam(self.images(2))
        assert all(parameter.grad is None for parameter in provider.parameters())
        assert not provider.network.first.weight.requires_grad and provider.network.second.weight.requires_grad
        assert all(torch.equal(value, before[key]) for key, value in provider.state_dict().items())

    def test_cam_is_the_same_without_gradients_and_in_inference_mode(self):
        provider = self.small(2)
        images = self.images(2)
        expected = provider.cam(images).detach()
        with torch.no_grad():
            assert torch.equal(provider.cam(images), expected)
        with torch.inference_mode():
            assert torch.equal(provider.cam(images.clone()), expected)

    def test_images_of_a_batch_do_not_touch_each_other(self):
        provider = self.small(2).double()
        images = self.images(2).double()
        images[1] *= 5
        together = provider.cam(images)
        for number in range(3):
            torch.testing.assert_close(together[number : number + 1], provider.cam(images[number : number + 1]))

    def test_meta_tensors_and_double(self):
        provider = self.small(2).double().eval()
        images = MetaTensor(self.images(2).double())
        for found in (provider.cam(images), provider(images), provider.features(images)):
            assert type(found) is torch.Tensor and found.dtype == torch.float64

    # --- loss ------------------------------------------------------------------------------------------------------
    def test_unknown_labels_do_not_count(self):
        provider = self.small(2, classes=3)
        images = self.images(2)
        torch.manual_seed(0)
        output = provider(images)
        loss = provider.loss(output, torch.full((3, 3), -1))
        gradients = torch.autograd.grad(loss, provider.network.head.weight, allow_unused=False)
        assert all(g.isfinite().all() for g in gradients)
        class_loss = provider.loss(provider.eval()(images), torch.full((3, 3), -1))
        assert class_loss.item() == 0 and class_loss.requires_grad

    def test_class_loss_is_the_mean_over_the_known_labels(self):
        provider = self.small(2, classes=3, positive_weight=[1.0, 2.0, 3.0]).double().eval()
        images = self.images(2).double()
        logits = provider(images).detach()
        labels = torch.tensor([[1, 0, -1], [-1, -1, 1], [0, -1, -1]], dtype=torch.int8)
        expected = []
        for row, marks in zip(logits.tolist(), labels.tolist(), strict=True):
            for k, (z, y) in enumerate(zip(row, marks, strict=True)):
                p = 1 / (1 + torch.tensor(-z, dtype=torch.float64).exp())
                if y >= 0:
                    expected.append(-(k + 1) * p.log() if y else -(1 - p).log())
        torch.testing.assert_close(provider.loss(provider(images), labels), torch.stack(expected).mean())

    def test_foreground_scoring_has_no_label_of_the_background(self):
        provider = self.small(2, classes=3, scoring="foreground")
        labels = torch.tensor([[1, 1, 0], [0, 0, 1], [1, 0, 0]])
        other = labels.clone()
        other[:, 0] = 1 - other[:, 0]
        torch.manual_seed(0)
        output = provider(self.images(2))
        assert torch.equal(provider.loss(output, labels), provider.loss(output, other))
        logits = provider.eval()(self.images(2))
        gradient = torch.autograd.grad(provider.loss(logits, labels), provider.network.head.bias)[0]
        assert gradient[0] == 0 and gradient[1:].abs().min() > 0

    def test_every_parameter_takes_part(self):
        provider = self.small(2, classes=3)
        for target in (torch.tensor([[1, 0, 1]] * 3), torch.full((3, 3), -1)):
            provider.zero_grad()
            provider.loss(provider(self.images(2)), target).backward()
            assert not [name for name, p in provider.named_parameters() if p.grad is None]

    def test_loss_is_float32_under_autocast(self):
        provider = self.small(2)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = provider.loss(provider(self.images(2)), torch.tensor([[1, 0], [0, 1], [1, 1]]))
        assert loss.dtype == torch.float32 and loss.isfinite()

    def test_wrong_labels_are_refused(self):
        provider = self.small(2)
        output = provider(self.images(2))
        for labels in (torch.zeros(3, 3), torch.zeros(3), torch.zeros(3, 2, 4)):
            with pytest.raises(ValueError, match=r"labels must have the shape \(B, 2\)"):
                provider.loss(output, labels)
        with pytest.raises(ValueError, match="labels must have the shape of the logits"):
            provider.loss(provider.eval()(self.images(2)), torch.zeros(4, 2))

    # --- learning --------------------------------------------------------------------------------------------------
    @pytest.mark.parametrize("spatial_dims", [2, 3])
    def test_learns_and_points_at_the_object(self, spatial_dims):
        provider = self.small(spatial_dims)
        items = squares(spatial_dims, sub=self.sub)
        images, labels = (torch.stack([item[key] for item in items]) for key in ("image", "patch_label"))
        before = provider.loss(provider.eval()(images), labels).item()
        losses = provider.fit(
            Dataset(items),
            max_epochs=self.epochs,
            batch_size=8,
            optimizer=lambda parameters: torch.optim.Adam(parameters, lr=self.rate),
        )
        assert len(losses) == self.epochs and losses[-1] < losses[0]
        assert provider.loss(provider.eval()(images), labels).item() < 0.5 * before
        with torch.no_grad():
            maps = provider.cam(images[1::2])
        hits = []
        for one, item in zip((maps[:, 1] - maps[:, 0]), items[1::2], strict=True):
            peak = torch.stack(torch.unravel_index(one.argmax(), one.shape)) * 4  # voxel at its centre
            hits.append(bool(((peak >= item["place"][0] - 4) & (peak < item["place"][1] + 4)).all()))
        assert sum(hits) >= 0.9 * len(hits)

    def test_trains_with_a_trainer_of_monai_and_comes_back_from_its_weights(self):
        provider = self.small(2)
        items = squares(2, 8, sub=self.sub)
        trainer = SupervisedTrainer(
            device=torch.device("cpu"),
            max_epochs=1,
            train_data_loader=DataLoader(Dataset(items), batch_size=4),
            network=provider,
            optimizer=torch.optim.SGD(provider.parameters(), 0.1),
            loss_function=provider.loss,
            prepare_batch=patch_pair,
            decollate=False,
        )
        trainer.run()
        other = self.small(2)
        images = self.images(2)
        assert not torch.equal(other.cam(images), provider.cam(images))
        other.load_state_dict(provider.state_dict())
        assert torch.equal(other.cam(images), provider.cam(images))

    def test_the_seed_decides(self):
        def fitted(seed):
            provider = self.small(2)
            provider.fit(Dataset(squares(2, 8, sub=self.sub)), max_epochs=1, batch_size=4, seed=seed)
            return provider.network.head.weight.detach()

        assert torch.equal(fitted(0), fitted(0)) and not torch.equal(fitted(0), fitted(1))

    # --- arguments -------------------------------------------------------------------------------------------------
    def test_wrong_arguments_are_refused(self):
        with pytest.raises(TypeError, match=r"features\(images\) and a convolution of 1 as head"):
            self.make(torch.nn.Linear(2, 2))
        network = SmallNetwork(2)
        network.head = torch.nn.Conv2d(8, 2, 3)
        with pytest.raises(TypeError, match="convolution of 1"):
            self.make(network)
        with pytest.raises(ValueError, match="scoring must be 'competing' or 'foreground', got 'both'"):
            self.small(2, scoring="both")
        with pytest.raises(ValueError, match="foreground scoring needs 2 or more classes"):
            self.small(2, classes=1, scoring="foreground")
        for weight in (0.0, [1.0], [1.0, -1.0], float("nan")):
            with pytest.raises(ValueError, match="positive_weight must be one number above 0, or 2 of them"):
                self.small(2, positive_weight=weight)
