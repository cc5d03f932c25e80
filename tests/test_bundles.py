# SPDX-License-Identifier: Apache-2.0
"""Every bundle that is found keeps the bundle contract; nothing here names one."""

from __future__ import annotations

import configparser
import json

import pytest

import monai_labelfx
from monai_labelfx.cli import main
from monai_labelfx.commands.bundle_folder import list_bundles, rivals, stem

BUNDLES = list_bundles()


@pytest.fixture(params=BUNDLES, ids=stem)
def bundle(request):
    return request.param


def test_there_are_bundles():
    assert BUNDLES


def test_verify_passes(bundle, capsys):
    assert main(["verify", stem(bundle)]) == 0, capsys.readouterr().out


def test_metadata_is_in_step_with_the_package(bundle):
    meta = json.loads((bundle / "configs" / "metadata.json").read_text())
    assert meta["required_packages_version"]["monai-labelfx"] == monai_labelfx.__version__
    root = configparser.ConfigParser()
    setup = bundle.parents[2] / "setup.cfg"
    assert root.read(setup), "the test runs from a checkout"
    required = root["options"]["install_requires"]
    for name in meta["required_packages_version"]:
        assert name == "monai-labelfx" or name in required, f"{name} is not among the dependencies"


def test_it_has_what_a_method_needs(bundle):
    for name in ("LICENSE", "docs/README.md", "configs/logging.conf", "configs/demo.yaml"):
        assert (bundle / name).is_file(), name
    assert not (bundle / "scripts").exists()
    assert rivals(bundle)
