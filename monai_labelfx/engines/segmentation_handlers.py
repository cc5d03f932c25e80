# SPDX-License-Identifier: Apache-2.0
"""What the metrics of segmentation from patch labels need in MONAI's engines."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch
from ignite.engine import Engine
from monai.utils import convert_to_dst_type

from monai_labelfx.engines.metric_handlers import PairedMetricHandler, _unbatched, from_instances
from monai_labelfx.ops.label_objects import label_objects


def from_patches(
    pred_key: str, patches_key: str = "patches", labels_key: str = "patch_labels"
) -> Callable[[Any], tuple[list[Any], list[Any]]]:
    """An ``output_transform`` that makes (class maps, pairs of patches and labels) for ``PatchConsistency``.

    It reads what MONAI's engines hold after decollation, a list with one dictionary per item, and one dictionary of
    batches alike. An item that lacks one of the keys, or holds ``None`` there, is dropped. All may be dropped.

    Args:
        pred_key: key of the class maps (1, \\*spatial), on the voxels that the patches count.
        patches_key: key of the patches (N, 2 \\* D). Default ``"patches"``.
        labels_key: key of their labels (N, K). Default ``"patch_labels"``.

    Returns:
        A callable for the ``output_transform`` of :py:class:`PatchLabelHandler`.

    Example:
        >>> items = [{"pred": 1, "patches": 2, "patch_labels": 3}, {"pred": 4}]
        >>> from_patches("pred")(items)
        ([1], [(2, 3)])
    """
    keys = (pred_key, patches_key, labels_key)

    def pairs(output: Any) -> tuple[list[Any], list[Any]]:
        items = _unbatched(output, keys) if isinstance(output, Mapping) else output
        known = [item for item in items if all(item.get(key) is not None for key in keys)]
        return [item[pred_key] for item in known], [(item[patches_key], item[labels_key]) for item in known]

    return pairs


def from_components(
    pred_key: str,
    label_key: str,
    *,
    class_index: int = 1,
    min_size: int = 0,
    fill_holes: bool = False,
    connectivity: int | None = None,
    label_instances: bool = False,
) -> Callable[[Any], tuple[list[Any], list[Any]]]:
    """An ``output_transform`` that makes (predicted objects, reference objects) of class maps, for object scores.

    It reads what :py:func:`from_instances` reads, and drops the items without reference as that does. Objects are the
    connected components of a class (:py:func:`~monai_labelfx.ops.label_objects`). Metadata stay, so that distances know
    the voxel size.

    Args:
        pred_key: key of the predicted class maps (1, \\*spatial).
        label_key: key of the reference (1, \\*spatial).
        class_index: the class whose objects are compared. Default 1.
        min_size: smallest predicted object, in voxels. Default 0. The reference keeps all its objects.
        fill_holes: fill the holes of predicted objects. Default ``False``.
        connectivity: of both, see ``label_objects``. Default ``None``, corners connect.
        label_instances: the reference holds a number for each object, as in GlaS, and is taken as it is. Default
            ``False``, it is a class map.

    Returns:
        A callable for the ``output_transform`` of :py:class:`PairedMetricHandler`.

    Raises:
        ValueError: in the call, when a class map has another number of channels than one.

    Example:
        >>> item = {"pred": torch.tensor([[1, 0, 1, 1, 0, 1]]), "label": torch.tensor([[0, 0, 1, 1, 0, 1]])}
        >>> (prediction,), (reference,) = from_components("pred", "label", min_size=2)([item])
        >>> prediction.tolist(), reference.tolist()
        ([[0, 0, 1, 1, 0, 0]], [[0, 0, 1, 1, 0, 2]])
    """
    pick = from_instances(pred_key, label_key)

    def objects(classes: Any, key: str, smallest: int, filled: bool) -> torch.Tensor:
        found = torch.as_tensor(classes)
        if found.ndim < 2 or found.shape[0] != 1:
            raise ValueError(f"{key!r} must be a class map (1, *spatial), got shape {tuple(found.shape)}.")
        mask = found.as_subclass(torch.Tensor)[0] == class_index
        labels = label_objects(mask, connectivity=connectivity, min_size=smallest, fill_holes=filled)[None]
        return convert_to_dst_type(labels, found, dtype=torch.int32)[0]

    def pairs(output: Any) -> tuple[list[Any], list[Any]]:
        predictions, references = pick(output)
        return (
            [objects(one, pred_key, min_size, fill_holes) for one in predictions],
            references if label_instances else [objects(one, label_key, 0, False) for one in references],
        )

    return pairs


class PatchLabelHandler(PairedMetricHandler):
    """:py:class:`~monai_labelfx.metrics.PatchConsistency` or ``PatchLabelScore`` as a handler of MONAI's engines.

    As :py:class:`PairedMetricHandler`, and where the labels of a whole run do not suffice for a score (all unknown, or
    every class has one kind of label only) the metric is left out of ``engine.state.metrics`` with a warning; as key
    metric it raises ``ValueError``.

    Args:
        metric_fn: the metric.
        output_transform: makes (predictions, references) of the engine's items: :py:func:`from_patches` for
            ``PatchConsistency``, :py:func:`from_instances` for ``PatchLabelScore``.
        save_details: keep the scores of the images or patches in ``engine.state.metric_details``.

    Example:
        >>> from monai_labelfx.metrics.patch_consistency import PatchConsistency
        >>> engine = Engine(lambda engine, batch: [{"pred": torch.tensor([[0, 0, 0, 1]])}])
        >>> PatchLabelHandler(PatchConsistency(2), from_patches("pred")).attach(engine, "consistency")
        >>> item = {"patches": torch.tensor([[0, 2], [2, 2]]), "patch_labels": torch.tensor([[1, 0], [1, 1]])}
        >>> engine.run([[item]]).metrics
        {'consistency': 1.0}
    """

    def __init__(self, metric_fn: Any, output_transform: Callable = lambda x: x, *, save_details: bool = True) -> None:
        super().__init__(metric_fn=metric_fn, output_transform=output_transform, save_details=save_details)

    def completed(self, engine: Engine, name: str) -> None:
        """Write the metric, or leave it out when the labels do not suffice."""
        metric: Any = self.metric_fn
        if len(metric) and not metric.defined() and name != getattr(engine.state, "key_metric_name", None):
            engine.state.metrics.pop(name, None)
            getattr(engine.state, "metric_details", {}).pop(name, None)
            warnings.warn(f"metric {name!r} is left out: the patch labels do not suffice for it.", stacklevel=2)
            return
        super().completed(engine, name)
