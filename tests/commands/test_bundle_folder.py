# SPDX-License-Identifier: Apache-2.0
"""Bundles are found by a folder scan, by name, stem or path."""

from __future__ import annotations

import pytest

from monai_labelfx.commands.bundle_folder import (
    config_file,
    describe_bundle,
    find_bundle,
    list_bundles,
    metadata,
    rivals,
    stage_files,
)


def test_by_name_stem_and_path(bundle):
    root = bundle.parent
    assert list_bundles(root) == [bundle]
    assert find_bundle("toy", root) == find_bundle("toy_segmentation", root) == find_bundle(bundle) == bundle


def test_installed_bundles_are_found():
    assert "denoiseg_segmentation" in [folder.name for folder in list_bundles()]
    assert find_bundle("denoiseg").name == "denoiseg_segmentation"


def test_unknown_and_ambiguous_names(bundle):
    root = bundle.parent
    with pytest.raises(ValueError, match="no bundle 'to'.*one of: toy"):
        find_bundle("to", root)
    (root / "toy_detection" / "configs").mkdir(parents=True)
    (root / "toy_detection" / "configs" / "metadata.json").write_text("{}")
    with pytest.raises(ValueError, match="toy_detection, toy_segmentation: give the folder name"):
        find_bundle("toy", root)
    assert find_bundle("toy_detection", root).name == "toy_detection"


def test_description(bundle):
    found = describe_bundle(bundle)
    assert (found["name"], found["folder"], found["version"]) == ("toy", "toy_segmentation", "0.1.0")
    assert found["presets"] == ["short", "wide"] and found["rivals"] == rivals(bundle) == ["heavy", "twice"]


def test_stages_are_in_order(bundle):
    assert [f.name for f in stage_files(bundle, "twice")] == ["01_first.yaml", "02_second.yaml"]
    assert stage_files(bundle) == []


def test_an_absent_configuration_names_those_there_are(bundle):
    with pytest.raises(ValueError, match="no 'huge' in configs/presets: it has short, wide"):
        config_file(bundle, "huge", "presets")


@pytest.mark.parametrize("text", ["{", "[1]"])
def test_unreadable_metadata(bundle, text):
    (bundle / "configs" / "metadata.json").write_text(text)
    with pytest.raises(ValueError, match=r"metadata\.json"):
        metadata(bundle)
