# SPDX-License-Identifier: Apache-2.0
"""Every benchmark, one after the other, each into a text file below --out: `make bench`.

    python benchmarks/run_all.py --out runs/bench [--quality]

Speed benchmarks take minutes and leave out peers that are not installed here. The quality tables train many networks
(hours on a CPU) and runs only with --quality and LABELFX_DATA.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
DETECTION = ("detection_nms", "detection_roi_align", "detection_metric", "detection_eval")
PATCH_METRIC = ("wavelet_split", "patch_metric_step", "patch_metric_series")
EASY_EXAMPLE = ("easy_example_loss", "multi_scale_inference", "cam_generation")
SPEED = {
    name: [f"{name}.py"]
    for name in (
        "masking",
        "step_share",
        "dicom_cases",
        "dicom_io",
        "box_tightness_speed",
        *DETECTION,
        *PATCH_METRIC,
        *EASY_EXAMPLE,
    )
}
QUALITY = {name: [f"{name}.py"] for name in ("denoiseg_quality", "box_tightness_quality")} | {
    f"detection_{data}": ["detection_quality.py", data, "--out", f"runs/detection_quality/{data}"]
    for data in ("shapes2d", "shapes3d", "lungs", "findings")
}
QUALITY |= {
    f"patch_metric_{data}": ["patch_metric_quality.py", data, "--out", f"runs/patch_metric_quality/{data}"]
    for data in ("abdomen", "shifted", "head")
}
QUALITY |= {
    f"easy_example_{data}": [
        "easy_example_quality.py",
        data,
        "--out",
        f"runs/easy_example_quality/{data}",
        "--seeds",
        "0",
        "1",
        "2",
    ]
    for data in ("glands", "histology", "hippocampus", "organs")
}
QUALITY["easy_example_noise"] = ["easy_example_noise.py"]
QUALITY["discriminator_units"] = ["discriminator_units.py", "--out", "runs/discriminator_units"]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/bench"))
    parser.add_argument("--quality", action="store_true", help="also train for the quality table")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    failed = []
    for name, (script, *arguments) in {**SPEED, **(QUALITY if options.quality else {})}.items():
        target = options.out / f"{name}.md"
        print(f"{name} -> {target}", flush=True)
        with target.open("w") as stream:
            command = [sys.executable, str(HERE / script), *arguments]
            if subprocess.run(command, stdout=stream, env=environment).returncode:
                failed.append(name)
    print(f"failed: {', '.join(failed)}" if failed else "all done")
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
