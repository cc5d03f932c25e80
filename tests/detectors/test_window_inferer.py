# SPDX-License-Identifier: Apache-2.0
"""Detection in windows: equal to detection in whole images, whatever the windows cut."""

from __future__ import annotations

import pytest
import torch
from monai.data import MetaTensor
from scipy import ndimage

from monai_labelfx.detectors.window_inferer import WindowDetectionInferer, detector_keys


class Finder(torch.nn.Module):
    """Detects each bright region: its value is class + score, so that the truth of any image is known."""

    def __init__(
        self, *, masks: bool | str = False, names: tuple[str, str, str] = ("boxes", "labels", "scores")
    ) -> None:
        super().__init__()
        self.masks = masks
        self.target_box_key, self.target_label_key, self.pred_score_key = names
        self.calls: list[tuple[int, ...]] = []
        self.eval()

    def forward(self, images: torch.Tensor) -> list[dict[str, torch.Tensor]]:
        self.calls.append(tuple(images.shape))
        assert type(images) is torch.Tensor
        return [self.find(image[0]) for image in images]

    def find(self, image: torch.Tensor) -> dict[str, torch.Tensor]:
        rows, masks = [], []
        for value in image[image > 0].unique():
            regions, count = ndimage.label((image == value).numpy())
            for number, box in enumerate(ndimage.find_objects(regions), start=1):
                rows.append(([*(s.start for s in box), *(s.stop for s in box)], int(value), float(value % 1)))
                masks.append(torch.from_numpy(regions == number))
        rows, masks = zip(*sorted(zip(rows, masks), key=lambda pair: -pair[0][2])) if rows else ((), ())  # noqa: B905
        boxes, labels, scores = ([row[part] for row in rows] for part in range(3))
        found = {
            self.target_box_key: torch.tensor(boxes, dtype=torch.float32).reshape(-1, 2 * image.ndim),
            self.target_label_key: torch.tensor(labels, dtype=torch.int64),
            self.pred_score_key: torch.tensor(scores, dtype=torch.float32),
        }
        if self.masks == "blocks":
            found["masks"] = [
                mask[tuple(map(slice, *box.long().split(image.ndim)))]
                for mask, box in zip(masks, found[self.target_box_key], strict=True)
            ]
        elif self.masks:
            found["masks"] = torch.stack(masks) if masks else image.new_zeros(0, *image.shape) > 0
        return found


def scene(shape: tuple[int, ...], objects: list[tuple]) -> torch.Tensor:
    """(1, *shape) with rectangles (low corner, high corner, class + score)."""
    image = torch.zeros(1, *shape)
    for low, high, value in objects:
        image[(0, *(slice(a, b) for a, b in zip(low, high, strict=True)))] = value
    return image


def same(found: dict, expected: dict) -> None:
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        assert type(found[key]) is type(value) and len(found[key]) == len(value), key
        assert all(torch.equal(one, other) for one, other in zip(found[key], value, strict=True)), key


FLAT = scene(
    (50, 40),
    [((2, 3), (9, 12), 0.5), ((20, 18), (28, 26), 1.75), ((41, 31), (50, 40), 0.625), ((30, 2), (34, 6), 2.25)],
)
DEEP = scene(
    (24, 20, 22), [((1, 1, 1), (6, 7, 5), 1.5), ((9, 9, 9), (15, 13, 15), 0.75), ((19, 14, 16), (24, 20, 22), 0.25)]
)


@pytest.mark.parametrize("image", [FLAT, DEEP], ids=["2-D", "3-D"])
@pytest.mark.parametrize("masks", [False, True, "blocks"])
@pytest.mark.parametrize("batch", [1, 3])
def test_equals_detection_in_the_whole_image(image, masks, batch):
    roi = [20, 18] if image.ndim == 3 else [14, 14, 14]
    detector = Finder(masks=masks)
    (expected,) = detector(image[None])
    detector.calls = []
    (found,) = WindowDetectionInferer(roi, overlap=0.5, sw_batch_size=batch)(image[None], detector)
    same(found, expected)
    assert len(expected["scores"]) >= 3 and len(detector.calls) > 4
    assert max(call[0] for call in detector.calls) == batch and {call[2:] for call in detector.calls} == {tuple(roi)}


@pytest.mark.parametrize("roi", [64, None, -1, (50, 60)])
@pytest.mark.parametrize("masks", [True, "blocks"])
def test_one_window_is_direct_detection(roi, masks):
    detector = Finder(masks=masks)
    (expected,) = detector(FLAT[None])
    # merging would drop the copies
    twice = {k: v + v if isinstance(v, list) else v.repeat_interleave(2, 0) for k, v in expected.items()}
    detector.find = lambda image: twice  # type: ignore[method-assign]
    detector.calls = []
    (found,) = WindowDetectionInferer(roi)(FLAT[None], detector)
    same(found, twice)
    assert detector.calls == [(1, 1, 50, 40)]


@pytest.mark.parametrize("masks", [True, "blocks"])
def test_images_of_different_sizes_share_batches(masks):
    images = [FLAT, FLAT[:, 9:45, 9:30].clone(), MetaTensor(DEEP[:, :18, :18, 4]), torch.zeros(1, 60, 60)]
    detector = Finder(masks=masks)
    expected = [detector(image.as_subclass(torch.Tensor)[None])[0] for image in images]
    detector.calls = []
    found = WindowDetectionInferer(18, overlap=0.7, sw_batch_size=64)(images, detector)
    for one, other in zip(found, expected, strict=True):
        same(one, other)
    assert len(detector.calls) == 3, "159 windows of four images in three batches of at most 64"
    assert WindowDetectionInferer(18)([], detector) == []


@pytest.mark.parametrize("masks", [True, "blocks"])
def test_an_object_larger_than_windows_is_put_together(masks):
    for axes in (2, 3):
        image = scene(
            (40,) * axes, [((3,) * axes, (36,) * (axes - 1) + (37,), 1.5), ((38,) * axes, (40,) * axes, 0.75)]
        )
        detector = Finder(masks=masks)
        (expected,) = detector(image[None])
        same(WindowDetectionInferer(16, overlap=0.5)(image[None], detector)[0], expected)
        same(WindowDetectionInferer(16, overlap=0.0)(image[None], detector)[0], expected)


@pytest.mark.parametrize("shape", [(40, 36), (24, 20, 16)])
@pytest.mark.parametrize("masks", [True, False])
def test_the_caps_of_a_round_object_are_no_objects(shape, masks):
    axes = torch.meshgrid(*[(torch.arange(n) + 0.5) / n * 2 - 1 for n in shape], indexing="ij")
    inside = sum(axis**2 for axis in axes) < 0.8
    image = torch.where(inside, 0.75, 0.0)[None]
    found = WindowDetectionInferer([n // 4 for n in shape])([image], Finder(masks=masks))[0]
    wanted = Finder(masks=masks)(image[None])[0]
    assert torch.equal(found["boxes"], wanted["boxes"])
    if masks:
        assert torch.equal(found["masks"], wanted["masks"])


def test_a_cut_box_without_counterpart_stays():
    class Once(Finder):
        def find(self, image):
            return super().find(image if len(self.calls) == 1 else torch.zeros_like(image))

    image = scene((30, 12), [((10, 2), (16, 10), 0.5)])
    (found,) = WindowDetectionInferer((15, 12), overlap=0.4)(image[None], Once(masks=True))
    assert found["boxes"].tolist() == [[10.0, 2.0, 15.0, 10.0]]
    assert torch.equal(found["masks"][0], (image[0] > 0) & (torch.arange(30)[:, None] < 15))


def test_windows_cover_the_image_evenly_and_overlap_enough():
    for size in range(1, 40):
        for window, overlap in ((7, 0.5), (8, 0.0), (5, 0.9), (16, 0.25)):
            inferer = WindowDetectionInferer(window, overlap=overlap)
            (length,), starts = inferer._windows((size,))
            lows = [low for (low,) in starts]
            assert lows[0] == 0 and lows[-1] + length == size and length == min(window, size)
            steps = {b - a for a, b in zip(lows, lows[1:], strict=False)}
            assert all(0 < step <= max(1, length * (1 - overlap)) for step in steps) and len(steps) <= 2


def test_options_per_axis():
    inferer = WindowDetectionInferer([8, None, 5], overlap=[0.5, 0, 0.2], border_margin=[1, 0, 2])
    size, starts = inferer._windows((16, 9, 13))
    assert size == (8, 9, 5) and len(starts) == 3 * 1 * 3
    (found,) = inferer(scene((16, 9, 13), [((5, 1, 4), (9, 8, 7), 0.5)])[None], Finder())
    assert found["boxes"].tolist() == [[5, 1, 4, 9, 8, 7]]


def test_thresholds_and_number():
    detector = Finder(masks=True)
    for roi in (64, 20):
        inferer = WindowDetectionInferer(roi, score_threshold=0.5, detections_per_image=2)
        (found,) = inferer(FLAT[None], detector)
        assert found["scores"].tolist() == [0.75, 0.625] and found["masks"].shape == (2, 50, 40)
        (blocks,) = inferer(FLAT[None], Finder(masks="blocks"))
        assert [tuple(one.shape) for one in blocks["masks"]] == [(8, 8), (9, 9)]
        assert found["labels"].tolist() == [1, 0]


def test_merging_by_weights():
    seen = iter([[10.0, 4, 13, 10], [10.0, 4, 15, 10]])
    boxes = {"labels": torch.tensor([1]), "scores": torch.tensor([0.5])}

    def detector(windows):  # two windows, 0 to 16 and 8 to 24: the object is in both, found with two ends
        return [{**boxes, "boxes": torch.tensor([next(seen)]) - torch.tensor([low, 0, low, 0])} for low in (0.0, 8.0)]

    image = torch.zeros(1, 1, 24, 16)
    inferer = WindowDetectionInferer(16, overlap=0.5, sw_batch_size=2, merge="weighted", border_margin=0)
    (found,) = inferer(image, detector)
    assert len(found["boxes"]) == 1 and 13 < float(found["boxes"][0, 2]) < 15 and found["labels"].tolist() == [1]
    # what one of two windows that show the place found alone loses half its score
    one = WindowDetectionInferer(16, overlap=0.5, merge="weighted")
    calls = iter([torch.tensor([[9.0, 4, 14, 10]]), torch.zeros(0, 4)])

    def once(windows):
        rows = next(calls)
        return [{"boxes": rows, "labels": torch.zeros(len(rows)).long(), "scores": torch.full((len(rows),), 0.5)}]

    assert one(image, once)[0]["scores"].tolist() == [0.5]  # cut in the second window, which must not vote
    calls = iter([torch.tensor([[10.0, 4, 14, 10]]), torch.zeros(0, 4)])
    assert one(image, once)[0]["scores"].tolist() == [0.25]
    with pytest.raises(ValueError, match="masks cannot be averaged"):
        one(FLAT[None], Finder(masks=True))


def test_names_of_the_detector_stay():
    detector = Finder(names=("box", "label", "label_scores"))
    (found,) = WindowDetectionInferer(20)(FLAT[None], detector)
    assert list(found) == ["box", "label", "label_scores"] and len(found["box"]) == 4
    assert detector_keys(detector) == {"boxes": "box", "labels": "label", "scores": "label_scores"}


def test_further_arguments_reach_the_detector():
    def detector(windows, first, *, second):
        assert (first, second) == (1, 2)
        return Finder().eval()(windows)

    assert len(WindowDetectionInferer(20)(FLAT[None], detector, 1, second=2)[0]["boxes"]) == 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"merge": "mean"}, "merge must be one of 'nms', 'weighted', got 'mean'"),
        ({"overlap": 1.0}, "overlap must be 0 to below 1"),
        ({"overlap": [0.5, -0.1]}, "overlap must be 0 to below 1"),
        ({"border_margin": -1}, "border_margin must be 0 or above"),
        ({"iou_threshold": 1.5}, "iou_threshold must be 0 to 1"),
        ({"sw_batch_size": 0}, "sw_batch_size must be 1 or above"),
        ({"detections_per_image": 0}, "detections_per_image must be 1 or above"),
    ],
)
def test_options_out_of_range(options, message):
    with pytest.raises(ValueError, match=message):
        WindowDetectionInferer(8, **options)


def test_refused_in_the_call():
    with pytest.raises(ValueError, match="roi_size must be one number or one for each of the 2 axes"):
        WindowDetectionInferer([8, 8, 8])(FLAT[None], Finder().eval())
    with pytest.raises(ValueError, match="call detector.eval"):
        WindowDetectionInferer(8)(FLAT[None], Finder().train())


def test_classes_do_not_suppress_each_other():
    def detector(windows):
        low = torch.tensor([0.0, 8.0])[len(calls)]
        calls.append(low)
        rows = torch.tensor([[9.0, 3, 13, 9]] * 2) - torch.stack([low, low * 0]).repeat(2)
        return [{"boxes": rows, "labels": torch.tensor([0, 1]), "scores": torch.tensor([0.5, 0.75])}]

    calls: list = []
    (found,) = WindowDetectionInferer(16, overlap=0.5, border_margin=0)(torch.zeros(1, 1, 24, 16), detector)
    assert found["labels"].tolist() == [1, 0] and found["boxes"].tolist() == [[9, 3, 13, 9]] * 2
