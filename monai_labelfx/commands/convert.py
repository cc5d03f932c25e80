# SPDX-License-Identifier: Apache-2.0
"""labelfx convert: DICOM to NIfTI, and NIfTI back to a derived DICOM series or a DICOM SEG.

  labelfx convert SERIES/ image.nii.gz                      a series, HU values and geometry kept
  labelfx convert seg.dcm label.nii.gz --like SERIES/       a SEG, on the grid of its series
  labelfx convert denoised.nii.gz derived/ --like SERIES/   back to DICOM: new series, same patient and study
  labelfx convert label.nii.gz seg.dcm --like SERIES/       back to DICOM: one segment per label value

What is written depends on DST: .nii or .nii.gz, .dcm (a SEG) or a folder (a series); --to overrules it. Values are
never interpolated: an image that lies on another grid than --like is refused. An existing DST is never replaced.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

KINDS = ("nifti", "series", "seg")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of this command."""
    parser.add_argument("source", metavar="SRC", type=Path, help="folder with a DICOM series, or an image file")
    parser.add_argument("destination", metavar="DST", type=Path, help="file or folder to write")
    parser.add_argument("--to", choices=KINDS, help="what to write; default: told by DST")
    parser.add_argument("--like", metavar="SERIES", type=Path, help="DICOM series that SRC belongs to")
    parser.add_argument("--series", metavar="UID", help="SeriesInstanceUID, where a DICOM folder holds several series")
    parser.add_argument(
        "--on-irregular", choices=("error", "warn", "resample"), default="error", help="what to do about gaps"
    )
    parser.add_argument("--segments", metavar="1=NAME,2=NAME", help="names of the label values of a SEG")
    parser.add_argument("--description", metavar="TEXT", help="what was done, for the header of a derived series")


def kind_of(destination: Path) -> str:
    """What a destination's name asks for.

    Example:
        >>> [kind_of(Path(name)) for name in ("a.nii.gz", "a.dcm", "folder")]
        ['nifti', 'seg', 'series']
    """
    name = destination.name.lower()
    return "nifti" if name.endswith((".nii", ".nii.gz")) else "seg" if name.endswith(".dcm") else "series"


def parse_segments(text: str | None) -> dict[int, str]:
    """``"1=tumour,2=liver"`` as a mapping.

    Example:
        >>> parse_segments("1=tumour,2=left kidney")
        {1: 'tumour', 2: 'left kidney'}
    """
    names = {}
    for part in text.split(",") if text else []:
        value, _, name = part.partition("=")
        if not value.strip().isdigit() or not name.strip():
            raise ValueError(f"--segments is {text!r}, expected label values with names: 1=tumour,2=liver")
        names[int(value)] = name.strip()
    return names


def main(args: argparse.Namespace) -> int:
    """Read, put on the grid of ``--like``, write."""
    kind = args.to or kind_of(args.destination)
    places = [args.destination]
    if kind == "series" and args.destination.suffix.lower() == ".dcm":
        places.append(args.destination.with_suffix(""))  # the folder, where the series has several files
    for place in places:
        if place.exists():
            raise ValueError(f"{place} exists already: choose another name, nothing is replaced")
    if kind != "seg" and args.segments:
        raise ValueError("--segments names the segments of a SEG, but DST is none")
    if kind != "series" and args.description:
        raise ValueError("--description is for a derived series, but DST is none")
    if kind != "nifti" and args.like is None:
        raise ValueError("DICOM output needs --like SERIES: patient, study and geometry come from the series SRC is of")
    segments = parse_segments(args.segments)
    from monai_labelfx.commands.quiet import quiet_bundle_runs

    quiet_bundle_runs()
    source = args.series if args.like is None else None  # with --like the UID chooses among its series
    image = read_grey(args.source, series=source, on_irregular=args.on_irregular)
    if args.like is not None:
        image = placed(
            image, read_grey(args.like, series=args.series, on_irregular=args.on_irregular), whole=kind == "series"
        )
    args.destination.parent.mkdir(parents=True, exist_ok=True)
    if kind == "nifti":
        save_nifti(image, args.destination)
    else:
        save_dicom(image, args.destination, kind, segments, args.description)
    print(f"wrote {next(place for place in places if place.exists())}")
    return 0


def read_grey(path: Path, *, series: str | None, on_irregular: str) -> Any:
    """A MetaTensor (1, *spatial) of what is at ``path``."""
    from monai.transforms import LoadImage

    from monai_labelfx.data import AutoReader

    reader = AutoReader(series=series, on_irregular=on_irregular)
    image = LoadImage(reader=reader, ensure_channel_first=True, dtype=None)(path)
    if image.shape[0] != 1:
        raise ValueError(f"{path} has {image.shape[0]} channels, expected a grey image or a label map")
    return image


def placed(image: Any, reference: Any, *, whole: bool) -> Any:
    """``image`` on the grid of ``reference``, with its meta; ``whole``: it must fill that grid."""
    import torch
    from monai.data import MetaTensor
    from monai.data.utils import to_affine_nd

    from monai_labelfx.transforms import PlaceOnGridd

    if whole and image.numel() != reference.numel():  # what is missing would become 0, which is a value of tissue
        raise ValueError(
            f"SRC has shape {tuple(image.shape[1:])}, but the series has {tuple(reference.shape[1:])}: an image must "
            "cover its series wholly"
        )
    result = PlaceOnGridd(keys="image", reference_key="reference")({"image": image, "reference": reference})["image"]
    target, own = (to_affine_nd(3, one.affine.double()) for one in (reference, result))
    voxels = torch.linalg.solve(target, own) - torch.eye(4)
    reach = torch.tensor([*reference.shape[1:], 1, 1, 1][:3] + [1], dtype=torch.float64)
    if result.shape != reference.shape or not float((voxels @ reach).abs().max()) <= 0.1:
        raise ValueError(  # PlaceOnGridd lets through what says no more than a voxel size
            f"SRC of shape {tuple(image.shape[1:])} has no position in space (its affine is {image.affine.tolist()}), "
            "so nothing tells whether it lies on the grid of the series"
        )
    return MetaTensor(result.as_tensor(), meta=reference.meta)


def save_nifti(image: Any, destination: Path) -> None:
    """Write (1, *spatial) as NIfTI: whole numbers as the smallest integers that hold them, all else as float32."""
    import numpy as np

    from monai_labelfx.data import NiftiWriter

    array = image.numpy()
    whole = array.dtype.kind in "biu" or bool(np.equal(array, np.rint(array)).all())
    fits = [
        name
        for name in ("uint8", "int16", "uint16", "int32")
        if whole and np.iinfo(name).min <= array.min() and array.max() <= np.iinfo(name).max
    ]
    writer = NiftiWriter(output_dtype=fits[0] if fits else "float32")
    writer.set_data_array(image)
    writer.set_metadata(image.meta, resample=False)
    writer.write(destination, verbose=False)


def save_dicom(image: Any, destination: Path, kind: str, segments: dict[int, str], description: str | None) -> None:
    """Write (1, *spatial), on the grid of the series its meta tells of, as SEG or derived series."""
    from monai_labelfx.data import DicomDerivedSeriesWriter, DicomSegWriter

    if kind == "seg":
        writer: Any = DicomSegWriter(segments=segments)
    else:
        writer = DicomDerivedSeriesWriter(description=description or "Derived")
    writer.set_data_array(image, channel_dim=0)
    writer.set_metadata(image.meta, resample=False)
    writer.write(destination, verbose=False)
