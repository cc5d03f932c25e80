# SPDX-License-Identifier: Apache-2.0
"""Bundles are folders that hold ``configs/metadata.json``: found by a folder scan, never registered."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

PACKAGE = Path(__file__).resolve().parents[1]
"""The installed package: read only, nothing is ever written below it."""

BUNDLES = PACKAGE / "bundles"
SUFFIXES = (".yaml", ".yml", ".json")
TASKS = ("segmentation", "denoising")  # that folder names have and stems have not


def list_bundles(root: str | Path = BUNDLES) -> list[Path]:
    """The bundle folders directly below ``root``, in alphabetical order."""
    return sorted(path.parents[1] for path in Path(root).glob("*/configs/metadata.json"))


def find_bundle(name: str | Path, root: str | Path = BUNDLES) -> Path:
    """The folder of one bundle.

    Args:
        name: folder name (``denoiseg_segmentation``), its stem (``denoiseg``), or a path to a bundle folder, as
            ``labelfx new`` makes it.
        root: folder to search for names.

    Raises:
        ValueError: when no bundle, or more than one, has this name.
    """
    path = Path(name).expanduser()
    if (path / "configs" / "metadata.json").is_file():
        return path.resolve()
    folders = list_bundles(root)
    found = [f for f in folders if f.name == str(name)] or [f for f in folders if f.name.startswith(f"{name}_")]
    if len(found) == 1:
        return found[0]
    known = ", ".join(stem(f) for f in folders) or "none"
    if found:
        raise ValueError(f"the bundle name {str(name)!r} fits {', '.join(f.name for f in found)}: give the folder name")
    raise ValueError(f"no bundle {str(name)!r}: it is neither a folder with configs/metadata.json nor one of: {known}")


def stem(bundle: Path) -> str:
    """The bundle's folder name without its task word.

    Example:
        >>> stem(Path("denoiseg_segmentation")), stem(Path("cxr_detection"))
        ('denoiseg', 'cxr_detection')
    """
    first, _, last = bundle.name.rpartition("_")
    return first if first and last in TASKS else bundle.name


def metadata(bundle: Path) -> dict[str, Any]:
    """The content of ``configs/metadata.json``."""
    file = bundle / "configs" / "metadata.json"
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{file} is not readable as JSON: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{file} holds a {type(content).__name__}, expected a JSON object")
    return content


def config_names(bundle: Path, kind: str = "") -> list[str]:
    """Names without suffix of the configuration files in ``configs/<kind>``."""
    return sorted({f.stem for f in (bundle / "configs" / kind).glob("*") if f.suffix in SUFFIXES})


def config_file(bundle: Path, name: str, kind: str = "") -> Path:
    """One configuration file, by its name without suffix.

    Raises:
        ValueError: when ``configs/<kind>`` has no such file; the sentence lists those it has.
    """
    for suffix in SUFFIXES:
        file = bundle / "configs" / kind / f"{name}{suffix}"
        if file.is_file():
            return file
    where = f"configs/{kind}" if kind else "configs"
    known = ", ".join(config_names(bundle, kind)) or "none"
    raise ValueError(f"bundle {bundle.name} has no {name!r} in {where}: it has {known}")


def stage_files(bundle: Path, plan: str = "") -> list[Path]:
    """The stages of a plan in their order: ``configs/stages[/<plan>]/NN_*.yaml``."""
    folder = bundle / "configs" / "stages" / plan
    return sorted(f for f in folder.glob("[0-9]*") if f.suffix in SUFFIXES)


def stage_overlays(file: Path) -> list[Path]:
    """The overlays that make up a stage: the stage that its ``stage_base`` names, if it has one, then the file itself.

    ``stage_base`` is the path of another stage in ``configs/stages``, without suffix: ``<plan>/NN_name``.

    Raises:
        ValueError: when there is no such stage, or it leads back to this one.
    """
    from monai.bundle import ConfigParser

    found = [file]
    stages = next(folder for folder in file.parents if folder.name == "stages")
    while base := ConfigParser.load_config_file(found[0]).get("stage_base"):
        files = [path for suffix in SUFFIXES if (path := stages / f"{base}{suffix}").is_file()]
        if not files or files[0] in found:
            raise ValueError(f"{found[0]}: stage_base {base!r} is no other stage in {stages}")
        found.insert(0, files[0])
    return found


def stage_plans(bundle: Path) -> list[str]:
    """Names of the folders in ``configs/stages`` that hold stages."""
    root = bundle / "configs" / "stages"
    return sorted(f.name for f in root.glob("*") if f.is_dir() and stage_files(bundle, f.name))


def rivals(bundle: Path) -> list[str]:
    """Everything that the bundle is compared with: overlays in ``rivals``, plans in ``stages`` but for its own."""
    return sorted({*config_names(bundle, "rivals"), *stage_plans(bundle)} - {stem(bundle)})


def describe_bundle(bundle: Path) -> dict[str, Any]:
    """What ``labelfx list`` says about one bundle."""
    meta = metadata(bundle)
    return {
        "name": stem(bundle),
        "folder": bundle.name,
        "path": str(bundle),
        "version": meta.get("version", ""),
        "task": meta.get("task", ""),
        "description": meta.get("description", ""),
        "presets": config_names(bundle, "presets"),
        "rivals": rivals(bundle),
        "sweeps": config_names(bundle, "sweeps"),
    }
