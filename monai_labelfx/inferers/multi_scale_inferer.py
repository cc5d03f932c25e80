# SPDX-License-Identifier: Apache-2.0
"""A network at several scales and flips of an image, window by window, as one averaged result."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import islice, product
from numbers import Integral, Real
from typing import Any

import torch
from monai.inferers import Inferer
from monai.utils import convert_to_dst_type

from monai_labelfx.inferers._scale_plan import numbers, per_axis, scale_plan
from monai_labelfx.inferers._windows import MODES, BlendedRows, WindowGrid
from monai_labelfx.ops._fold_resize import fold_resize, resize_columns, resize_rows

ACTIVATIONS: dict[str | None, Callable[[torch.Tensor], torch.Tensor]] = {
    "softmax": lambda scores: scores.softmax(dim=1),
    "sigmoid": torch.sigmoid,
    None: lambda scores: scores,
}
_BAND = 2**22  # numbers of a resized image held at once, more where a row of windows is: 16 MiB cost no time to get
PAPER_SCALES = (0.75, 1.0, 1.25, 1.5, 1.75, 2.0, 2.5, 3.0)


class MultiScaleInferer(Inferer):
    r"""Average what a network says of an image at several scales and mirrored, in sliding windows; nothing is random.

    With the image resized by each scale s and mirrored by each f of F flips, and the scores z of the network averaged
    over the windows that cover a voxel and resized back to the size of the image,

    .. math:: p = \frac{1}{S F} \sum_{s} \sum_{f} \mathrm{activation}(z_{s, f})

    For any network in two or three dimensions, and on its own: MONAI's ``TestTimeAugmentation`` is random and has no
    windows, its ``SlidingWindowInferer`` has one scale. Class activation maps are the case ``activation=None``.

    Args:
        roi_size: the window in voxels of the resized image, that is what the network is given: one number or one for
            each axis. -1: the whole axis. A resized image that is smaller is not padded, but its window is cut.
        scales: factors of the image size, each a number or one number for each axis, above 0. Default: the eight of
            Li et al. 2022 (OEEM). For volumes (0.75, 1, 1.25) is advised, since time grows with the third power.
        flips: spatial axes to mirror, in all combinations: k axes make :math:`F = 2^k` passes. Default: none; the
            authors' code mirrors the horizontal axis, which is 0 here.
        overlap: of neighbouring windows, as a share of the window, 0 or above and below 1, one number or one for each
            axis. Default 0.2: windows of 320 every 256 voxels, as in OEEM.
        mode: what the voxels of a window weigh: "constant" (default, OEEM) or "gaussian" (less towards the border).
        sw_batch_size: windows given to the network at once, of one row of windows and of one or more images. Default 1,
            the fastest on a processor; a GPU may like more.
        activation: of the scores of each scale and flip, before they are averaged: "softmax" over the channels
            (default), "sigmoid", or None, which averages the scores themselves.
        zoom: a factor of all scales, a number or one for each axis. 2 where the network was trained on patches that
            were enlarged from 112 to 224. Default 1.
        windows: "image" (default) resizes the image and lays windows over it. "native" lays windows of
            :math:`roi / (zoom \cdot s)` over the image itself and resizes each: see Notes.
        divisor: sizes that the network can take are multiples of it, one number or one for each axis. Where a resized
            image is smaller than the window, its size is rounded to a multiple, so that nothing is padded and maps at
            this feature stride are not stretched. Default 1.
        sw_device: where the network is, if images and results shall stay elsewhere. Default: where the images are.

    Shape:
        - inputs: (B, C, \*spatial), one to three spatial axes; other kinds than floating point become float32.
        - the network is given (N, C, \*window), N at most ``sw_batch_size``, and returns (N, K, \*map); a map of
          another size than the window, like one at feature stride, is interpolated to the window.
        - output: (B, K, \*spatial) with device and data type of ``inputs``; a MetaTensor if ``inputs`` is one. Sums
          are float32 at least.

    Raises:
        ValueError: if an argument is out of its range, or inputs or results of the network have a shape that does not
            fit; softmax of one channel too, which is 1 everywhere.
        TypeError: if the network returns anything but one tensor.

    Notes:
        - Resized sizes are rounded half up and at least one voxel. Interpolation is linear without antialiasing,
          as in OEEM's evaluation.
        - Windows of mirrored passes lie where those of the image lie; mirroring the image first would move them, where
          a multiple of the step does not end at its border.
        - OEEM scales tiles of 256 pixels, which see nothing beyond themselves; here the image is scaled.
        - Memory beyond the network's: the result, and one band of the image and of the scores, as high as a window
          along the first axis: C + F K numbers for each voxel there (F is 1 for ``activation=None``), not the whole
          resized image unless it is small (16 MiB). "image" holds the band of the resized image, so that it grows with
          :math:`(zoom \cdot s)^{D - 1}`; "native" holds a band of the image itself, which no scale makes larger.
        - "native" averages the windows after they are resized, not before. It is the same at a factor of 1, and where
          one window takes the whole image. Elsewhere the window is a whole number w of voxels, so that resizing it to
          ``roi_size`` may miss the scale by the share :math:`1 / (2 w)`, and voxels beyond its border take no part.

    Example:
        >>> import torch
        >>> from monai_labelfx.inferers import MultiScaleInferer
        >>> network = torch.nn.Conv2d(3, 2, 3, padding=1).requires_grad_(False)
        >>> image = torch.rand(1, 3, 60, 45)
        >>> probabilities = MultiScaleInferer(32, scales=(0.75, 1, 2), flips=0)(image, network)
        >>> probabilities.shape, torch.allclose(probabilities.sum(dim=1), torch.ones(60, 45))
        (torch.Size([1, 2, 60, 45]), True)
    """

    def __init__(
        self,
        roi_size: int | Sequence[int],
        scales: float | Sequence[float | Sequence[float]] = PAPER_SCALES,
        *,
        flips: int | Sequence[int] | None = None,
        overlap: float | Sequence[float] = 0.2,
        mode: str = "constant",
        sw_batch_size: int = 1,
        activation: str | None = "softmax",
        zoom: float | Sequence[float] = 1.0,
        windows: str = "image",
        divisor: int | Sequence[int] = 1,
        sw_device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        self.scales, self.flips = numbers(scales), () if flips is None else numbers(flips)
        self.roi_size, self.overlap, self.zoom, self.divisor = roi_size, overlap, zoom, divisor
        self.mode, self.activation, self.windows = mode, activation, windows
        self.sw_batch_size, self.sw_device = sw_batch_size, sw_device
        if not self.scales:
            raise ValueError("scales must hold at least one number, got none.")
        for scale in self.scales:
            _require(_all(scale, lambda s: 0 < s < math.inf), "scales", "numbers above 0", scales)
        _require(_all(zoom, lambda z: 0 < z < math.inf), "zoom", "above 0", zoom)
        _require(_all(roi_size, lambda r: r >= 1 or r == -1, Integral), "roi_size", "1 or above, or -1", roi_size)
        _require(_all(overlap, lambda o: 0 <= o < 1), "overlap", "0 or above and below 1", overlap)
        _require(_all(divisor, lambda d: d >= 1, Integral), "divisor", "1 or above", divisor)
        _require(_all(self.flips, lambda axis: True, Integral), "flips", "numbers of spatial axes", flips)
        _require(sw_batch_size >= 1, "sw_batch_size", "1 or above", sw_batch_size)
        _require(mode in MODES, "mode", f"one of {MODES}", mode)
        _require(activation in ACTIVATIONS, "activation", f"one of {tuple(ACTIVATIONS)}", activation)
        _require(windows in ("image", "native"), "windows", "one of ('image', 'native')", windows)

    def __call__(
        self, inputs: torch.Tensor, network: Callable[..., torch.Tensor], *args: Any, **kwargs: Any
    ) -> torch.Tensor:
        dims = inputs.ndim - 2
        if not 1 <= dims <= 3 or 0 in inputs.shape:
            raise ValueError(
                f"inputs must have shape (B, C, *spatial), one to three spatial axes, none empty, "
                f"got {tuple(inputs.shape)}."
            )
        flips = self._flips(dims)
        images = inputs.as_subclass(torch.Tensor)
        images = images if images.is_floating_point() else images.float()

        def run(tiles: torch.Tensor) -> torch.Tensor:
            scores = network(tiles.to(self.sw_device or tiles.device), *args, **kwargs)
            self._check(scores, tiles)
            kind = torch.promote_types(torch.promote_types(scores.dtype, images.dtype), torch.float32)
            return scores.as_subclass(torch.Tensor).to(kind)

        total: torch.Tensor | None = None
        groups = [flips] if self.activation is None else [[axes] for axes in flips]  # the mean of scores needs one sum
        for scale in self.scales:
            for rows, scores in self._blend(images, scale, groups, run):
                total = scores.new_zeros((*scores.shape[:2], *images.shape[2:])) if total is None else total
                total[:, :, rows].add_(ACTIVATIONS[self.activation](scores))
        mean = total.div_(len(self.scales) * len(groups))  # type: ignore[union-attr]  # there is a scale and a group
        return convert_to_dst_type(mean, inputs, dtype=images.dtype)[0]

    def _blend(
        self,
        images: torch.Tensor,
        scale: float | Sequence[float],
        groups: Sequence[Sequence[tuple[int, ...]]],
        run: Callable[[torch.Tensor], torch.Tensor],
    ) -> Iterator[tuple[slice, torch.Tensor]]:
        """Mean scores of the windows at one scale: some rows of the result (B, K, rows, ...), then more of them."""
        shape, dims = images.shape[2:], images.ndim - 2
        factors = zip(per_axis(scale, "each of scales", dims), per_axis(self.zoom, "zoom", dims), strict=True)
        size, window, tile = scale_plan(
            shape,
            [s * zoom for s, zoom in factors],
            roi_size=per_axis(self.roi_size, "roi_size", dims),
            divisor=per_axis(self.divisor, "divisor", dims),
            native=self.windows == "native",
        )
        grid = WindowGrid(size, window, per_axis(self.overlap, "overlap", dims), self.mode)
        blends = [BlendedRows(grid, shape, len(images), len(flips)) for flips in groups]
        row = math.prod(images.shape[:2]) * math.prod(size[1:])
        for rows, firsts in grid.bands(_BAND // row):
            resized = resize_columns(resize_rows(images, size[0], rows.start, rows.stop), size[1:])
            for first, done in firsts:
                band = resized.narrow(2, first - rows.start, window[0])
                for places in _chunks(product(range(len(images)), grid.places()), self.sw_batch_size):
                    crops = [band[image : image + 1, :, *place] for image, place in places]
                    tiles = fold_resize(crops[0] if len(crops) == 1 else torch.cat(crops), tile)
                    for flips, blend in zip(groups, blends, strict=True):
                        for axes in flips:
                            scores = run(tiles.flip(axes)).flip(axes) if axes else run(tiles)
                            scores = fold_resize(fold_resize(scores, tile), window)
                            blend.add(scores.to(images.device), places)
                for blend in blends:
                    yield blend.finish(first, done)

    def _flips(self, dims: int) -> list[tuple[int, ...]]:
        """All combinations of the axes, as axes of (B, C, \\*spatial); the image as it is comes first."""
        valid = all(-dims <= axis < dims for axis in self.flips)
        _require(valid, "flips", f"spatial axes of {dims}, from {-dims} to {dims - 1}", self.flips)
        axes = sorted({axis % dims + 2 for axis in self.flips})
        chosen = product((False, True), repeat=len(axes))
        return [tuple(axis for axis, flip in zip(axes, choice, strict=True) if flip) for choice in chosen]

    def _check(self, scores: Any, tiles: torch.Tensor) -> None:
        if not isinstance(scores, torch.Tensor):
            raise TypeError(f"the network must return one tensor of scores, got {type(scores).__name__}.")
        if scores.ndim != tiles.ndim or len(scores) != len(tiles):
            raise ValueError(
                f"the network must return maps (N, K, *map) for windows {tuple(tiles.shape)}, "
                f"got {tuple(scores.shape)}."
            )
        if self.activation == "softmax" and scores.shape[1] == 1:
            raise ValueError("activation must be 'sigmoid' or None for one channel of scores: its softmax is 1.")


def _all(value: Any, test: Callable[[Any], bool], kind: type = Real) -> bool:
    return all(isinstance(number, kind) and test(number) for number in numbers(value))


def _require(valid: bool, name: str, wanted: str, found: Any) -> None:
    if not valid:
        raise ValueError(f"{name} must be {wanted}, got {found!r}.")


def _chunks(items: Iterator[Any], length: int) -> Iterator[list[Any]]:
    while chunk := list(islice(items, length)):
        yield chunk
