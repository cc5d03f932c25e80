# SPDX-License-Identifier: Apache-2.0
"""Connected components of a label map: their tight boxes, and the ones that are too small."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from monai_labelfx.ops.instances import check_connectivity, integer_labels


def component_boxes(
    labels: torch.Tensor, *, connectivity: int | None = None, min_size: int = 0, instances: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """Tight boxes of the connected components of each class of a label map.

    Two components of one class get two boxes: a box around both would not be tight around either, and lines that
    cross it may miss both (7 to 10 in 100 lines of two blobs under one box). Components of different classes never
    join, however they touch.

    Args:
        labels: (\\*spatial) label map with any number of axes: 0 background, every other number a class; bool, any
            integer type, or floats that hold whole numbers.
        connectivity: how many axes two voxels of one component may differ in, 1 (faces) to the number of spatial axes
            (faces, edges and corners). Default ``None``, the number of spatial axes, as in the code of the paper (Wang
            and Xia 2021, Bounding box tightness prior): 8 neighbours in 2-D.
        min_size: smallest component to keep, in voxels. Default 0, keep all, single voxels too. The voxels of those
            that are left out are :func:`small_components`.
        instances: each number is one object, in however many parts, and gets one box around all of them; then
            ``connectivity`` does not matter. Default ``False``.

    Returns:
        (N, 2 * spatial_dims) int64 boxes in voxels: low corner, then high corner, half open (MONAI's standard mode), so
        that ``high - low`` counts voxels; and (N,) int64, the label of each. Both on the device of ``labels``, sorted
        by label and then in scan order; N is 0 where there is no object.

    Raises:
        TypeError: when ``labels`` is no tensor of real numbers.
        ValueError: when labels are negative or fractional, or another argument is out of its range.

    Notes:
        The components are found on the CPU. uint64 labels above 2**63 - 1 come back as negative numbers.

    Example:
        >>> labels = torch.tensor([[1, 1, 0, 0], [0, 0, 0, 2], [0, 1, 0, 2]])
        >>> boxes, classes = component_boxes(labels)
        >>> boxes.tolist()
        [[0, 0, 1, 2], [2, 1, 3, 2], [1, 3, 3, 4]]
        >>> classes.tolist()
        [1, 1, 2]
        >>> component_boxes(labels, instances=True)[0].tolist()
        [[0, 0, 3, 2], [1, 3, 3, 4]]
    """
    array, structure = _checked(labels, connectivity, min_size)
    boxes, classes = [np.empty((0, 2 * array.ndim), np.int64)], [np.empty(0, np.int64)]
    for label, corner, parts, sizes in _groups(array, structure, instances):
        keep = _present(sizes, min_size)
        boxes.append(_boxes(parts, keep) + np.tile(corner, 2))
        classes.append(label[keep - 1] if instances else np.repeat(label, len(keep)))
    return (
        torch.as_tensor(np.concatenate(boxes), device=labels.device),
        torch.as_tensor(np.concatenate(classes), device=labels.device),
    )


def small_components(
    labels: torch.Tensor, min_size: int, *, connectivity: int | None = None, instances: bool = False
) -> torch.Tensor:
    """Voxels of the components that :func:`component_boxes` leaves out.

    They have no box and yet are no background: what learns from the boxes should leave them out. (The code of the
    paper takes them for background.)

    Args:
        labels: (\\*spatial) label map, as for :func:`component_boxes`.
        min_size: smallest component that has a box, in voxels.
        connectivity: as for :func:`component_boxes`.
        instances: as for :func:`component_boxes`.

    Returns:
        (\\*spatial) bool on the device of ``labels``.

    Raises:
        TypeError: when ``labels`` is no tensor of real numbers.
        ValueError: when labels are negative or fractional, or another argument is out of its range.

    Example:
        >>> small_components(torch.tensor([[3, 0, 3, 3]]), 2).tolist()
        [[True, False, False, False]]
    """
    array, structure = _checked(labels, connectivity, min_size)
    small = np.zeros(array.shape, bool)
    for _, corner, parts, sizes in _groups(array, structure, instances):
        window = tuple(slice(start, start + size) for start, size in zip(corner, parts.shape, strict=True))
        dropped = sizes < min_size
        dropped[0] = False
        small[window] |= dropped[parts]
    return torch.as_tensor(small, device=labels.device)


def largest_components(masks: torch.Tensor, *, connectivity: int | None = None) -> torch.Tensor:
    """The largest connected component of each mask, of equal ones the first.

    Args:
        masks: (N, \\*spatial), what is not 0 is inside.
        connectivity: as for :func:`component_boxes`.

    Returns:
        (N, \\*spatial) bool on the device of ``masks``. An empty mask stays empty.

    Raises:
        ValueError: for masks without spatial axes, or ``connectivity`` out of its range.

    Example:
        >>> largest_components(torch.tensor([[1, 0, 1, 1], [0, 0, 0, 0]])).int().tolist()
        [[0, 0, 1, 1], [0, 0, 0, 0]]
    """
    from scipy import ndimage

    axes = masks.ndim - 1
    if axes < 1:
        raise ValueError(f"masks must have the shape (N, *spatial), got {tuple(masks.shape)}.")
    connectivity = axes if connectivity is None else connectivity
    check_connectivity(connectivity, axes)
    structure = np.zeros((3,) * masks.ndim, bool)
    structure[1] = ndimage.generate_binary_structure(axes, connectivity)  # masks do not touch each other
    parts, number = ndimage.label((masks != 0).detach().cpu().numpy(), structure)
    if not number:
        return torch.zeros_like(masks, dtype=torch.bool)
    sizes = np.bincount(parts.ravel())
    # components are numbered from mask to mask
    last = np.maximum.accumulate(parts.reshape(len(parts), -1).max(axis=1))
    owner = np.searchsorted(last, np.arange(1, number + 1))
    order = np.lexsort((-sizes[1:], owner))  # stable: of equal ones the first
    kept = np.zeros(number + 1, bool)
    kept[1 + order[np.unique(owner[order], return_index=True)[1]]] = True
    return torch.as_tensor(kept[parts], device=masks.device)


def _checked(labels: torch.Tensor, connectivity: int | None, min_size: int) -> tuple[np.ndarray, np.ndarray]:
    """The labels as an array of integers, and which neighbours belong together."""
    from scipy import ndimage

    array = integer_labels(labels).detach().cpu().numpy()
    if array.ndim < 1:
        raise ValueError("labels must have the shape (*spatial), got a single number.")
    connectivity = array.ndim if connectivity is None else connectivity
    check_connectivity(connectivity, array.ndim)
    if min_size < 0:
        raise ValueError(f"min_size must be a number of voxels, 0 or above, got {min_size}.")
    return array, ndimage.generate_binary_structure(array.ndim, connectivity)


def _groups(
    array: np.ndarray, structure: np.ndarray, instances: bool
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]]:
    """Yield the label, first voxel, components numbered from 1, and their sizes (of 0 too), for each class.

    In the mode of instances there is one group: the objects are the components, and the labels are as many as these.
    """
    from scipy import ndimage

    array, values = _compact(array)
    sizes = np.bincount(array.ravel(), minlength=1)
    if instances:
        yield values, np.zeros(array.ndim, np.int64), array, sizes
        return
    present = _present(sizes)
    for number, box in zip(present, _boxes(array, present), strict=True):
        corner, end = np.split(box, 2)
        window = tuple(slice(start, stop) for start, stop in zip(corner, end, strict=True))
        parts, _ = ndimage.label(array[window] == number, structure)
        yield values[number - 1], corner, parts, np.bincount(parts.ravel())


def _compact(array: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The labels as small numbers from 1 upwards, and what each of these stands for."""
    if array.size == 0 or (array.min() >= 0 and array.max() <= array.size):
        return array, np.arange(1, int(array.max(initial=0)) + 1)
    objects = array != 0
    values, numbers = np.unique(array[objects], return_inverse=True)
    result = np.zeros(array.shape, np.int64)
    result[objects] = numbers + 1
    return result, values


def _present(sizes: np.ndarray, min_size: int = 0) -> np.ndarray:
    """Numbers, from 1 upwards, of the parts that have voxels, and enough of them."""
    return np.flatnonzero(sizes[1:] >= max(min_size, 1)) + 1


def _boxes(parts: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    """(N, 2 * ndim) boxes of the parts with these numbers."""
    from scipy import ndimage

    windows = ndimage.find_objects(parts) if numbers.size else []
    corners = [[[s.start for s in windows[n - 1]], [s.stop for s in windows[n - 1]]] for n in numbers]
    return np.array(corners, np.int64).reshape(-1, 2 * parts.ndim)
