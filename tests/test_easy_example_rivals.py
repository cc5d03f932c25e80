# SPDX-License-Identifier: Apache-2.0
"""The rivals of the OEEM bundle: all in one table, what they share with the method, what each of them is."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from easy_example_bundle import (
    BUNDLE,
    METHOD,
    STAGES,
    call,
    glands,
    metrics,
    options,
    organs,
    read_json,
    run,
)
from monai.bundle import ConfigParser

from monai_labelfx.commands.bundle_folder import config_file, rivals
from monai_labelfx.commands.run import comparison_layout
from monai_labelfx.commands.workflow import config_files, merge_configs
from monai_labelfx.networks import WideResNet38Backbone

FULL = ("full_supervision", "kiu_net", "medt", "res_unet", "uctransnet", "unet")
LAST_STAGE = ("confidence_difference", "confidence_max", "cross_entropy", "mixed", "ohem")
"""Rivals that share the classifier and the pseudo masks of the method."""
OWN_MAPS = ("adv_cam", "sc_cam", "seam")
PROVIDERS = {"adv_cam": "cams.AdvCAM", "sc_cam": "cams.SCCAM", "seam": "cams.SEAM"}
MAPS = {"adv_cam": f"stages/{STAGES[1]}", "sc_cam": "08_pseudo_masks", "seam": f"stages/{STAGES[1]}"}
"""Where each of them makes its pseudo masks."""
CHEAP = {"climbing_steps": 2, "climbing_size": 1.0, "hard_threshold": 0.3}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    return glands(tmp_path_factory.mktemp("pictures"))


def check_rivals(out: Path, datalist: Path, names: list[str], dims: int, capsys, **values) -> None:
    """Train and evaluate rivals in one command each, and read the table."""
    more = ["--rivals", *(["all"] if len(names) == 1 + len(rivals(BUNDLE)) else names)]
    run("train", out, datalist, *more, dims=dims, **values, **({"clusters": 2} if "sc_cam" in names else {}))
    printed = capsys.readouterr().out
    assert printed.count(f"{STAGES[0]}] done") == 1 + ("seam" in names) + ("sc_cam" in names), (
        "a shared stage ran twice"
    )
    shared = out / METHOD / "stages"
    for name in set(LAST_STAGE) & set(names):
        assert not (out / name / "stages").exists()
        assert f"{shared}/{STAGES[1]}" in (out / name / "config_train.yaml").read_text()
    if "adv_cam" in names:
        assert [path.name for path in (out / "adv_cam" / "stages").iterdir()] == [STAGES[1]]
        assert f"{shared}/{STAGES[0]}" in (out / "adv_cam" / "stages" / STAGES[1] / "config_train.yaml").read_text()

    run("evaluate", out, datalist, *more, dims=dims, **values)
    printed = capsys.readouterr().out
    tables = read_json(out / "table.json")["tables"]
    layout = comparison_layout(BUNDLE)["tables"]
    assert [table["title"] for table in tables] == [table["title"] for table in layout]
    order = [name for name in comparison_layout(BUNDLE)["rows"] if name in names]
    for table in tables:
        assert [row["run"] for row in table["rows"]] == order
    heads = layout[1]["columns"]
    for row in tables[1]["rows"]:
        staged = row["run"] not in FULL
        assert all((row[heads[name]] is not None) is staged for name in ("CAM_mIoU", "pseudo_mIoU")), row
        assert 0 <= float(row[heads["mIoU"]]) <= 1
    places = {name: out / name / ("09_segment" if name == "sc_cam" else "") for name in names}
    losses = {name: read_json(place / "history.json")["train_loss"][-1][1] for name, place in places.items()}
    assert np.isfinite(list(losses.values())).all(), losses
    own = [loss for name, loss in losses.items() if name not in OWN_MAPS]  # the maps of networks so poor may be alike
    assert len(set(own)) == len(own), losses
    for name, provider in PROVIDERS.items():
        if name in names:
            assert provider in (out / name / MAPS[name] / "config_train.yaml").read_text()
    same = [metrics(places[name])["pseudo_mIoU"] for name in (METHOD, *LAST_STAGE) if name in names]
    assert len(set(same)) == 1


def test_rivals_of_each_kind(pictures, tmp_path, capsys):
    names = [METHOD, "ohem", "full_supervision", "adv_cam", "seam", "sc_cam"]
    check_rivals(tmp_path / "out", pictures, names, 2, capsys, **CHEAP)


@pytest.mark.slow
def test_all_rivals_run_and_end_in_a_table(pictures, tmp_path, capsys):
    names = [METHOD, *rivals(BUNDLE)]
    assert sorted(names) == sorted([METHOD, *FULL, *LAST_STAGE, *OWN_MAPS])
    check_rivals(tmp_path / "out", pictures, names, 2, capsys, **CHEAP)


@pytest.mark.slow
def test_rivals_in_three_dimensions(tmp_path, capsys):
    names = [METHOD, "cross_entropy", "seam", "sc_cam"]
    check_rivals(tmp_path / "out", organs(tmp_path / "data"), names, 3, capsys)


def test_a_rival_alone_takes_its_own_options(pictures, tmp_path, capsys):
    out = tmp_path / "out"
    run("train", out, pictures, "--rival", "adv_cam", climbing_steps=1)
    assert capsys.readouterr().out.count("] done in") == 3
    run("evaluate", out, pictures, "--rival", "adv_cam", climbing_steps=1)
    assert 0 <= metrics(out)["CAM_mIoU"] <= 1
    assert call("train", out, "--datalist", pictures, "--rival", "adv_cam", *options(climbing_step=1)) == 1
    assert "climbing_steps" in capsys.readouterr().err.strip().splitlines()[-1]


def test_cross_entropy_is_the_loss_without_weights(pictures, tmp_path):
    """Its rival overlay changes the loss of the last stage alone."""
    logits, target = torch.randn(2, 4, 8, 8), torch.randint(0, 2, (2, 1, 8, 8))
    target[:, :, :2] = 255
    losses = {}
    for name in (METHOD, "cross_entropy"):
        overlays = [] if name == METHOD else [config_file(BUNDLE, name, "rivals")]
        parser = ConfigParser(merge_configs(config_files(BUNDLE, "train", [], overlays)))
        losses[name] = float(parser.get_parsed_content("loss")(logits, target))
    plain = torch.nn.CrossEntropyLoss(ignore_index=255)
    expected = float(plain(logits[:, :2], target[:, 0]) + 0.4 * plain(logits[:, 2:], target[:, 0]))
    assert losses["cross_entropy"] == pytest.approx(expected, rel=1e-5) and losses[METHOD] < expected


def test_networks_of_rivals_do_not_build_the_one_of_the_method(pictures, tmp_path, monkeypatch):
    monkeypatch.setattr(WideResNet38Backbone, "__init__", lambda self, *args, **more: pytest.fail("it was built"))
    run("train", tmp_path / "out", pictures, "--rival", "unet", pictures=None)


@pytest.mark.parametrize(
    ("presets", "rival", "network", "backbone"),
    [
        ([], None, "PSPNet", "WideResNet38Backbone"),
        (["small"], None, "UNet", None),
        (["small", "psp_net"], None, "PSPNet", "ResNetBackbone"),
        (["3d"], None, "UNet", None),
        (["small", "psp_net"], "full_supervision", "PSPNet", "WideResNet38Backbone"),
        (["small", "psp_net"], "unet", "UNet", None),
    ],
)
def test_what_segments(presets, rival, network, backbone):
    """Presets choose the network of the method; the upper bound stays that of the paper."""
    overlays = [] if rival is None else [config_file(BUNDLE, rival, "rivals")]
    parser = ConfigParser(merge_configs(config_files(BUNDLE, "train", presets, overlays)))
    parser.update({"width": 0.03, "features": [4, 8, 8, 8]})
    built = parser.get_parsed_content("network_def")
    inner = getattr(built, "backbone", None)
    assert (type(built).__name__, inner and type(inner).__name__) == (network, backbone)
    image = torch.zeros(1, parser["in_channels"], *[32] * parser["spatial_dims"])
    assert built.eval()(image).shape == (1, 2, *image.shape[2:])
