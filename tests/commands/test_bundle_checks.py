# SPDX-License-Identifier: Apache-2.0
"""Each fault of a bundle that reading can find is found and named."""

from __future__ import annotations

import json

import pytest

from monai_labelfx.commands import bundle_checks as checks
from monai_labelfx.commands.plan import load_plan

ALL = [checks.check_files, checks.check_schema, checks.check_changelog, checks.check_versions, checks.check_components]


@pytest.mark.parametrize("check", ALL)
def test_the_toy_passes(check, bundle):
    check(bundle)


@pytest.mark.parametrize("name", [*checks.FILES, *(f"configs/{name}.yaml" for name in checks.CONFIGS)])
def test_missing_files(bundle, name):
    (bundle / name).unlink()
    with pytest.raises(ValueError, match=name.split("/")[-1].removesuffix(".yaml")):
        checks.check_files(bundle)


def test_scripts_are_refused(bundle):
    (bundle / "scripts").mkdir()
    with pytest.raises(ValueError, match="scripts: a bundle holds configuration only"):
        checks.check_files(bundle)
    (bundle / "scripts" / "a.py").touch()
    with pytest.raises(ValueError, match=r"a\.py"):
        checks.check_files(bundle)


def _edit(bundle, **changes):
    file = bundle / "configs" / "metadata.json"
    meta = {k: v for k, v in {**json.loads(file.read_text()), **changes}.items() if v is not None}
    file.write_text(json.dumps(meta))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"authors": None}, "'authors' is a required property"),
        ({"version": 1}, "version: 1 is not of type 'string'"),
        ({"changelog": {}}, "changelog: "),
        ({"network_data_format": {"inputs": {}, "outputs": {}}}, "network_data_format#inputs.*and 3 more"),
    ],
)
def test_schema(bundle, changes, message):
    _edit(bundle, **changes)
    with pytest.raises(ValueError, match=message):
        checks.check_schema(bundle)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"monai_version": "1.5.0"}, "metadata.json asks for monai 1.5.0, but monai-labelfx requires monai"),
        ({"required_packages_version": {"monai-labelfx": "9.9"}}, "asks for monai-labelfx 9.9"),
        ({"required_packages_version": {"itk": "5.4"}}, "itk, which monai-labelfx does not require"),
    ],
)
def test_versions(bundle, changes, message):
    _edit(bundle, **changes)
    with pytest.raises(ValueError, match=message):
        checks.check_versions(bundle)


def test_changelog(bundle):
    _edit(bundle, version="0.2.0")
    with pytest.raises(ValueError, match=r"0\.2\.0.* no entry"):
        checks.check_changelog(bundle)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: {_target_: monai_labelfx.nowhere.Thing}", "a names monai_labelfx.nowhere.Thing, which does not exist"),
        ("a: {_target_: UNet, spatial: 3}", "UNet: .*argument"),
        ("a: [{_target_: torch.nn.Conv2d, in_channels: 1}]", "a#0, torch.nn.Conv2d: missing a required argument"),
        ("a: '@absent#b'", "a refers to @absent#b, which is not defined"),
        ("a: '$@seed +'", "a is not a Python expression"),
        ("a: $undefined.thing(@seed)", "a uses undefined, which no `imports` entry binds"),
        ("imports: [$import os.path]\na: $os.path.sep", "a uses os"),
    ],
)
def test_components(bundle, text, message):
    (bundle / "configs" / "presets" / "bad.yaml").write_text(text)
    with pytest.raises(ValueError, match=f"train with presets/bad: .*{message}"):
        checks.check_components(bundle)


@pytest.mark.parametrize("place", ["presets", "rivals", "stages", "stages/twice"])
def test_every_kind_of_overlay_is_looked_at(bundle, place):
    (bundle / "configs" / place / "03_bad.yaml").write_text("a: '@absent'")
    with pytest.raises(ValueError, match=f"train with {place}/+03_bad: a refers to @absent"):
        checks.check_components(bundle)


@pytest.mark.parametrize(
    "text",
    [
        "a: {_target_: torch.nn.Conv2d, _mode_: callable, in_channels: 1}",
        "a: $[i for i in range(@seed) if i]",
        "imports: [$import os.path as p, $import glob]\na: $p.sep",
        "a: {_target_: $@loss}",
    ],
)
def test_what_is_fine(bundle, text):
    (bundle / "configs" / "presets" / "fine.yaml").write_text(text)
    checks.check_components(bundle)


def test_demo_data_is_checked(bundle):
    file = bundle / "configs" / "demo.yaml"
    file.write_text(file.read_text().replace("size: 12", "length: 12"))
    with pytest.raises(ValueError, match="demo --data larger: .*length"):
        checks.check_components(bundle)


def test_first_steps(bundle):
    steps = checks.first_steps(load_plan(bundle))
    assert {w: s["name"] for w, s in steps.items()} == {
        "train": "toy",
        "evaluate": "toy_test",
        "inference": "predictions",
    }
