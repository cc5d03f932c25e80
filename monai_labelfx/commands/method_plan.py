# SPDX-License-Identifier: Apache-2.0
"""The stages of a bundle whose method needs several trainings, and of the rivals that share some of them.

The stages of a method are ``configs/stages/<stem>/NN_*.yaml``. They write into ``<root>/stages/<stage>``, the last one
into ``<root>`` itself, so that the result lies where that of a method with one training lies. A rival whose overlay has
``stage_from: NN_name`` is laid over the stages from that one on, and uses what the method wrote in those before.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from monai_labelfx._version import __version__
from monai_labelfx.commands.bundle_folder import config_file, stage_files, stage_overlays, stem


def in_stages(bundle: Path, name: str) -> bool:
    """Whether training the method (its stem) or a rival is a plan of stages of the method."""
    if not stage_files(bundle, stem(bundle)):
        return False
    return name == stem(bundle) or _stage_from(bundle, name) is not None


def method_steps(
    bundle: Path,
    name: str,
    presets: Sequence[str],
    overrides: Mapping[str, Any],
    *,
    root: str = "{out}",
    shared: str | None = None,
) -> list[dict[str, Any]]:
    """The training steps of the method, or of a rival with ``stage_from``.

    Every step gets ``stages_dir``, the folder of the stages of this name, and ``stage_dirs``, a mapping from each
    earlier stage to its folder. A stage is complete while its result is there: ``stage_done`` of its configuration, a
    file in its folder, ``models/model.pt`` if it names none.

    Args:
        bundle: the bundle's folder.
        name: the bundle's stem, or the name of an overlay in ``rivals``.
        presets: laid over the training configuration.
        overrides: for every step.
        root: folder of the result.
        shared: folder of the method's result, whose stages the rival shares. Default: ``root``.

    Raises:
        ValueError: when ``stage_from`` names no stage.
    """
    from monai_labelfx.commands.workflow import config_files, merge_configs

    files = stage_files(bundle, stem(bundle))
    names = [file.stem for file in files]
    first = _stage_from(bundle, name)
    if first is not None and first not in names:
        raise ValueError(f"rivals/{name} has stage_from {first!r}, expected one of {', '.join(names)}")
    overlay = [] if name == stem(bundle) else [config_file(bundle, name, "rivals")]
    steps: list[dict[str, Any]] = []
    folders: dict[str, str] = {}
    for number, file in enumerate(files):
        own = first is None or number >= names.index(first)
        base = root if own or shared is None else shared
        folder = base if file is files[-1] else f"{base}/stages/{file.stem}"
        config = config_files(bundle, "train", presets, [*stage_overlays(file), *(overlay if own else [])])
        places = {"stages_dir": f"{base}/stages", "stage_dirs": dict(folders), "output_dir": folder}
        label = folder.removeprefix("{out}").strip("/") or name
        step = {"name": label, "workflow": "train", "config": config, "overrides": {**overrides, **places}}
        step["done"] = merge_configs(config).get("stage_done", "models/model.pt")
        steps.append({**step, **({"after_step": steps[-1]["name"]} if steps else {"after": __version__})})
        folders[file.stem] = folder
    return steps


def _stage_from(bundle: Path, name: str) -> str | None:
    from monai.bundle import ConfigParser

    if name == stem(bundle):
        return None
    value = ConfigParser.load_config_file(config_file(bundle, name, "rivals")).get("stage_from")
    return None if value is None else str(value)
