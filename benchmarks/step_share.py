# SPDX-License-Identifier: Apache-2.0
"""How much of a training step of the demonstration is not network forward, backward or optimiser.

    python benchmarks/step_share.py [--steps 100] [--preset 3d thin_stack]

Trains the DenoiSeg bundle on the data and at the size of `labelfx demo denoiseg` and takes the processor time of each
part of a step, single thread: reading a batch from the cache (crop, symmetries, collation), masking, forward, loss,
backward, optimiser, handlers. The printed table holds means over all steps but the first ten.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
from pathlib import Path

import torch
from ignite.engine import Events
from monai.engines import IterationEvents

from monai_labelfx.commands.bundle_folder import find_bundle
from monai_labelfx.commands.plan import load_plan, step_overrides
from monai_labelfx.commands.workflow import bundle_workflow, config_files, writable_folder
from monai_labelfx.data import brain_mr

WARM_UP = 10


def measure(steps: int, out: Path) -> dict[str, float]:
    """Milliseconds of processor time per step, by part."""
    bundle = find_bundle("denoiseg")
    plan = load_plan(bundle)
    files = config_files(bundle, "train", plan["presets"])
    overrides = step_overrides(plan, {"config": files})
    overrides |= {"datalist": str(brain_mr(out / "data"))}
    overrides |= {"max_epochs": 2, "steps_per_epoch": (steps + WARM_UP) // 2, "val_interval": 10}
    with bundle_workflow(bundle, "train", files, writable_folder(out / "run"), overrides) as flow:
        flow.initialize()
        trainer = flow.parser.get_parsed_content("train#trainer")
        marks: list[dict[str, float]] = []

        def mark(name: str):
            def note(*_) -> None:
                if name == "read":
                    marks.append({})
                if marks:
                    marks[-1].setdefault(name, time.process_time())

            return note

        trainer.add_event_handler(Events.GET_BATCH_STARTED, mark("read"))
        trainer.add_event_handler(Events.ITERATION_STARTED, mark("mask"))
        trainer.network.register_forward_pre_hook(mark("forward"))
        for event, name in {
            IterationEvents.FORWARD_COMPLETED: "loss",
            IterationEvents.LOSS_COMPLETED: "backward",
            IterationEvents.BACKWARD_COMPLETED: "optimiser",
            IterationEvents.MODEL_COMPLETED: "handlers",
        }.items():
            trainer.add_event_handler(event, mark(name))
        trainer.run()
    parts = ["read", "mask", "forward", "loss", "backward", "optimiser", "handlers"]
    spans: dict[str, list[float]] = {part: [] for part in parts}
    complete = [m for m in marks if len(m) == len(parts)]
    for now, following in zip(complete[WARM_UP:], complete[WARM_UP + 1 :], strict=False):
        edges = [now[part] for part in parts] + [following["read"]]
        for part, start, end in zip(parts, edges, edges[1:], strict=False):
            spans[part].append(1e3 * (end - start))
    # the last step of an epoch also holds the checkpoint: not part of a step
    return {
        part: sum(sorted(values)[: int(0.98 * len(values))]) / int(0.98 * len(values)) for part, values in spans.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=100)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        spans = measure(options.steps, Path(folder))
    total = sum(spans.values())
    network = sum(spans[part] for part in ("forward", "backward", "optimiser"))
    print("| part | ms per step | share |\n|---|---|---|")
    for part, value in spans.items():
        print(f"| {part} | {value:.2f} | {value / total:.1%} |")
    print(f"| not network forward, backward or optimiser | {total - network:.2f} | {(total - network) / total:.1%} |")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"\npeak resident memory of the process: {peak:.0f} MiB, torch {torch.__version__}")


if __name__ == "__main__":
    main()
