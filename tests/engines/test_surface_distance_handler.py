# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import inspect
import math

import pytest
import torch
from ignite.engine import Engine
from monai.data import MetaTensor

from monai_labelfx.engines import from_instances
from monai_labelfx.engines.surface_distance_handler import PhysicalSurfaceDistanceHandler
from monai_labelfx.metrics.surface_distance import PhysicalSurfaceDistance

FOUND, SHIFTED, NOTHING = (torch.tensor([[row]]) for row in ([0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0]))


def attached(**keywords) -> Engine:
    engine = Engine(lambda engine, batch: batch)
    PhysicalSurfaceDistanceHandler(output_transform=from_instances("pred", "label"), **keywords).attach(engine, "ASSD")
    return engine


def test_keywords_mirror_the_metric():
    own = dict(inspect.signature(PhysicalSurfaceDistanceHandler).parameters)
    assert own.pop("save_details").default is True and own.pop("output_transform")
    assert {n: p.default for n, p in own.items()} == {
        n: p.default for n, p in inspect.signature(PhysicalSurfaceDistance).parameters.items()
    }


def test_distances_in_the_unit_of_each_label():
    label = MetaTensor(FOUND, affine=torch.diag(torch.tensor([1.0, 2.5, 1.0])))
    state = attached().run([[{"pred": SHIFTED, "label": label}], [{"pred": SHIFTED, "label": FOUND}]])
    assert state.metrics == {"ASSD": pytest.approx(1.75), "ASSD_not_computed": 0}
    assert state.metric_details["ASSD"].tolist() == [[2.5], [1.0]]


def test_counts_what_is_missing_and_starts_anew():
    engine = attached(classes=2)
    both = {"pred": torch.cat([SHIFTED, NOTHING]), "label": torch.cat([FOUND, FOUND])}
    missed = {"pred": torch.cat([NOTHING, NOTHING]), "label": torch.cat([FOUND, NOTHING])}
    metrics = engine.run([[both], [missed]]).metrics
    assert metrics == {"ASSD": pytest.approx(0.5), "ASSD_not_computed": 2}
    assert engine.run([[both]]).metrics == {"ASSD": 1.0, "ASSD_not_computed": 1}
    only = {"pred": torch.cat([NOTHING, FOUND]), "label": torch.cat([FOUND, NOTHING])}
    metrics = engine.run([[only]]).metrics
    assert math.isnan(metrics["ASSD"]) and metrics["ASSD_not_computed"] == 2


def test_without_any_reference_both_numbers_are_left_out():
    engine = attached()
    engine.run([[{"pred": FOUND, "label": FOUND}]])
    with pytest.warns(UserWarning, match="'ASSD' is left out"):
        assert engine.run([[{"pred": FOUND}]]).metrics == {}
