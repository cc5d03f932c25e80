# SPDX-License-Identifier: Apache-2.0
"""Weights that follow from their names, so that outputs of torchvision can be checked without it and without its files.

``python tests/torchvision_recipe.py FILE.npz`` with torch 2.13.0 and torchvision 0.28.0 writes the committed
``tests/networks/torchvision_golden.npz``: a few channels of what torchvision's networks make of a seeded image.
"""

from __future__ import annotations

import math
import sys
import zlib

import numpy as np
import torch

CHANNELS = 4  # of each map that are kept
SHAPES = {"resnet18": (3, 33, 40), "resnext50_32x4d": (3, 33, 40), "vgg16": (3, 48, 64)}
PYRAMID = {"c3": (8, 9, 5), "c4": (12, 5, 3), "c5": (16, 3, 2)}


def seeded_weights(shapes: dict[str, tuple[int, ...]]) -> dict[str, torch.Tensor]:
    """Values for a state dict's names and shapes, each from a generator that its name alone seeds.

    Weights of convolutions and linear layers are uniform of variance 2 / fan_in; variances and norm weights uniform in
    0.5 to 1.5; biases and means in -0.1 to 0.1; counters zero.
    """
    state = {}
    for name, shape in shapes.items():
        random = np.random.RandomState(zlib.crc32(name.encode()))
        if len(shape) > 1:
            limit = math.sqrt(6 / math.prod(shape[1:]))
            low, high = -limit, limit
        elif name.endswith(("running_var", "weight")):
            low, high = 0.5, 1.5
        else:
            low, high = -0.1, 0.1
        values = random.random_sample(shape) * (high - low) + low if shape else 0
        state[name] = torch.as_tensor(np.asarray(values, dtype=np.float32))
    return state


def seeded_image(name: str, shape: tuple[int, ...]) -> torch.Tensor:
    """A batch of one image, normal values, of a generator that ``name`` seeds."""
    return torch.as_tensor(np.random.RandomState(zlib.crc32(name.encode())).randn(1, *shape).astype(np.float32))


def some_channels(maps) -> list[np.ndarray]:
    """``CHANNELS`` channels of each map, evenly spaced."""
    return [m[0, :: m.shape[1] // CHANNELS][:CHANNELS].detach().numpy() for m in maps]


def main(path: str) -> None:
    """Run torchvision and write what it made."""
    import torchvision
    from torchvision.models.detection.ssd import _vgg_extractor
    from torchvision.ops import FeaturePyramidNetwork
    from torchvision.ops.feature_pyramid_network import LastLevelMaxPool, LastLevelP6P7

    def seeded(module: torch.nn.Module) -> torch.nn.Module:
        module.load_state_dict(seeded_weights({k: tuple(v.shape) for k, v in module.state_dict().items()}))
        return module.eval()

    golden = {}
    with torch.no_grad():
        for name in ("resnet18", "resnext50_32x4d"):
            net = seeded(getattr(torchvision.models, name)())
            x = net.maxpool(net.relu(net.bn1(net.conv1(seeded_image(name, SHAPES[name])))))
            maps = []
            for stage in (net.layer1, net.layer2, net.layer3, net.layer4):
                x = stage(x)
                maps.append(x)
            golden |= {f"{name}.{i}": values for i, values in enumerate(some_channels(maps))}
        ssd = seeded(_vgg_extractor(torchvision.models.vgg16(), False, 5))
        fine = ssd.features(seeded_image("vgg16", SHAPES["vgg16"]))
        golden |= {f"vgg16.{i}": values for i, values in enumerate(some_channels([fine, ssd.extra[0](fine)]))}
        for name, last in (("pool", LastLevelMaxPool()), ("convs_on_input", LastLevelP6P7(16, CHANNELS))):
            pyramid = seeded(FeaturePyramidNetwork([s[0] for s in PYRAMID.values()], CHANNELS, last))
            levels = pyramid({key: seeded_image(key, shape) for key, shape in PYRAMID.items()})
            golden |= {f"{name}.{i}": values for i, values in enumerate(some_channels(levels.values()))}
    np.savez_compressed(path, **golden)


if __name__ == "__main__":
    main(sys.argv[1])
