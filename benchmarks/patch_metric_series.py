# SPDX-License-Identifier: Apache-2.0
"""Denoise a CT series of 300 slices end to end and tell what share of the time is not the network.

    python benchmarks/patch_metric_series.py [--slices 300] [--repeats 1]

A DICOM series of 512 x 512 slices is made from the head slice that pydicom ships, and the bundle's own reading,
preprocessing, network (512 x 512), postprocessing and writing run on it, once to a DICOM series and once to NIfTI,
without the audit and without pictures. The network's time is that of its own calls. One thread.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from monai.bundle import ConfigParser  # noqa: E402
from pydicom import dcmread  # noqa: E402
from pydicom.data import get_testdata_file  # noqa: E402
from pydicom.uid import ExplicitVRLittleEndian, generate_uid  # noqa: E402

from monai_labelfx.commands.bundle_folder import find_bundle  # noqa: E402
from monai_labelfx.commands.workflow import config_files, merge_configs  # noqa: E402


def make_series(folder: Path, slices: int) -> Path:
    """The head slice as many times, 1 mm apart, uncompressed."""
    folder.mkdir(parents=True)
    dataset = dcmread(get_testdata_file("J2K_pixelrep_mismatch.dcm", download=False))
    pixels = dataset.pixel_array  # pydicom's own decompress() fails on this file
    dataset["PixelData"].is_undefined_length = False
    dataset.PixelData, dataset.PixelRepresentation = pixels.tobytes(), int(pixels.dtype.kind == "i")
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.SeriesInstanceUID = generate_uid()
    x, y, _ = dataset.ImagePositionPatient
    for index in range(slices):
        dataset.SOPInstanceUID = generate_uid()
        dataset.InstanceNumber = index + 1
        dataset.ImagePositionPatient = [x, y, float(index)]
        dataset.save_as(folder / f"{index:04d}.dcm", enforce_file_format=True)
    return folder


def run(config: dict, images: Path, out: Path, preset: dict) -> tuple[float, float]:
    """Seconds in all and in the network."""
    parser = ConfigParser({**config, **preset})
    model = out / "model.pt"
    out.mkdir(parents=True)
    parser["dataset_dir"], parser["output_dir"], parser["ckpt_path"] = str(images), str(out), str(model)
    parser["audit"], parser["pictures"] = False, 0
    parser["imports"] = ["$import torch"]
    network = parser.get_parsed_content("network")
    torch.save({"model": network.state_dict()}, model)
    spent = 0.0

    def timed(module, arguments, forward=network.forward):
        nonlocal spent
        begin = time.perf_counter()
        result = forward(arguments)
        spent += time.perf_counter() - begin
        return result

    network.forward = lambda image: timed(network, image)
    evaluator = parser.get_parsed_content("evaluator")
    begin = time.perf_counter()
    evaluator.run()
    return time.perf_counter() - begin, spent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--slices", type=int, default=300)
    parser.add_argument("--repeats", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(1)
    bundle = find_bundle("patch_metric")
    print("| output | seconds | per slice, network | share that is not network |\n|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        series = make_series(Path(folder) / "series", options.slices)
        for repeat in range(options.repeats):
            for name, presets in (("DICOM series", ["dicom"]), ("NIfTI", [])):
                config = merge_configs(config_files(bundle, "inference", presets))
                total, network = run(config, series, Path(folder) / f"{name}{repeat}", {})
                share = 1 - network / total
                print(f"| {name} | {total:.1f} | {network / options.slices:.3f} s | {share:.1%} |", flush=True)


if __name__ == "__main__":
    main()
