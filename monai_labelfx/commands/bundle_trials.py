# SPDX-License-Identifier: Apache-2.0
"""What is checked about a bundle by using it: properties of its workflows, its network, and every way to export it."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

from monai_labelfx.commands.bundle_checks import first_steps
from monai_labelfx.commands.bundle_folder import config_file, metadata
from monai_labelfx.commands.files import read_json
from monai_labelfx.commands.plan import fill, load_plan, step_files, step_overrides
from monai_labelfx.commands.workflow import bundle_workflow, merge_configs


class BundleTrials:
    """Trials of one bundle on the CPU, in a scratch folder; each method raises when its trial fails.

    Args:
        bundle: the bundle's folder.
        scratch: folder for data and exported networks.
    """

    def __init__(self, bundle: Path, scratch: Path) -> None:
        self.bundle = bundle
        self.scratch = scratch
        self.meta = str(bundle / "configs" / "metadata.json")

    @cached_property
    def config(self) -> str:
        """The configuration that stands alone: it defines the network that is exported."""
        return str(config_file(self.bundle, "inference"))

    @cached_property
    def datalist(self) -> Path:
        """The demo's data: a workflow has its properties only when its data set can be made."""
        from monai.bundle import ConfigParser

        call = {"destination": str(self.scratch / "data"), **load_plan(self.bundle)["data"]}
        places = {"out": str(self.scratch), "bundle": str(self.bundle)}
        return Path(ConfigParser({"data": fill(call, places)}).get_parsed_content("data"))

    @cached_property
    def checkpoint(self) -> Path:
        """An untrained network, saved as the state dictionary that MONAI's exports read."""
        import torch

        path = self.scratch / "models" / "model.pt"
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save(self._network().state_dict(), path)
        return path

    def properties(self, workflow: str) -> None:
        """MONAI finds all properties of a workflow, with the files and overrides of the demo's first step of it.

        A demo without such a step lends its data: the folder of its first image is what inference reads.
        """
        plan = load_plan(self.bundle)
        step = first_steps(plan).get(workflow)
        if step is None:
            step = {"name": workflow, "workflow": workflow, "overrides": {"dataset_dir": self._first_image_folder()}}
        out = self.scratch / workflow
        out.mkdir(exist_ok=True)
        places = {"out": str(self.scratch), "bundle": str(self.bundle)}
        places |= {"data": str(self.datalist), "data_dir": str(self.datalist.parent)}
        step = {**step, "config": step_files(self.bundle, step, plan.get("presets", ()))}
        overrides = fill(step_overrides(plan, step), places)
        if workflow != "train":  # an untrained network stands for what a step before this one would have trained
            config = merge_configs(step["config"])
            values = {"ckpt_dir": str(self.checkpoint.parent), "ckpt_path": str(self.checkpoint)}
            overrides |= {name: value for name, value in values.items() if name in config}
        with _silence(), bundle_workflow(self.bundle, workflow, step["config"], out, overrides) as flow:
            flow.initialize()
            wrong = flow.check_properties()
            flow.finalize()
        if wrong:
            raise ValueError(f"missing or misnamed properties: {', '.join(wrong)}")

    def _first_image_folder(self) -> str:
        items = [item for part in read_json(self.datalist, {}).values() if isinstance(part, list) for item in part]
        if not items:
            raise ValueError(f"the demo's datalist has no items: {self.datalist}")
        image = items[0]["image"] if isinstance(items[0], dict) else items[0]
        return str((self.datalist.parent / image).parent)

    def metadata_by_monai(self) -> None:
        """MONAI's own ``verify_metadata`` accepts the file against the vendored schema."""
        from monai.bundle import verify_metadata

        from monai_labelfx.commands.bundle_checks import SCHEMA

        copy = self.scratch / "schema.json"  # MONAI downloads the schema only where the file is absent
        copy.write_bytes(SCHEMA.read_bytes())
        with _silence():
            verify_metadata(meta_file=self.meta, filepath=str(copy))

    def net_in_out(self) -> None:
        """The network keeps the channels and types of ``network_data_format``."""
        from monai.bundle import verify_net_in_out

        with _silence():
            verify_net_in_out("network_def", meta_file=self.meta, config_file=self.config, device="cpu", n=2, any=32)

    def ckpt_export(self) -> None:
        """TorchScript: the exported file loads and agrees with the network.

        Networks whose output is of format "detection" or "hounsfield" are traced at the stated size, where others are
        scripted: TorchScript's language cannot say how pyramids join maps of any size, nor PyTorch's spectral norm.
        """
        import torch
        from monai.bundle import ckpt_export

        file = self.scratch / "model.ts"
        outputs = metadata(self.bundle)["network_data_format"]["outputs"]
        traced = any(output.get("format") in ("detection", "hounsfield") for output in outputs.values())
        shape = list(self._example().shape) if traced else None
        with _silence():
            ckpt_export("network_def", str(file), str(self.checkpoint), self.meta, self.config, None, traced, shape)
            self._agrees(torch.jit.load(str(file)))

    def onnx_export(self) -> None:
        """ONNX: the exported file runs in onnxruntime and agrees with the network."""
        _needs_export("onnx", "onnxscript", "onnxruntime")
        import numpy as np
        import onnxruntime
        import torch
        from monai.bundle import onnx_export

        file, x = self.scratch / "model.onnx", self._example()
        with _silence():
            onnx_export(
                "network_def",
                str(file),
                str(self.checkpoint),
                self.meta,
                self.config,
                input_shape=list(x.shape),
            )
        session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
        found = session.run(None, {session.get_inputs()[0].name: x.numpy()})[0]
        with torch.no_grad():
            expected = self._loaded()(x).numpy()
        if not np.allclose(found, expected, rtol=1e-3, atol=1e-4):
            raise ValueError(f"onnxruntime differs from the network by up to {np.abs(found - expected).max():.2g}")

    def torch_export(self) -> None:
        """torch.export with free spatial axes: the saved program loads and agrees with the network."""
        import torch
        from torch.export import Dim

        x, file = self._example(), self.scratch / "model.pt2"
        axes = {axis: Dim.AUTO for axis in range(2, x.ndim)}
        with _silence():
            program = torch.export.export(self._loaded(), (x,), dynamic_shapes=(axes,))
            torch.export.save(program, str(file))
            self._agrees(torch.export.load(str(file)).module())

    def _network(self) -> Any:
        from monai.bundle import ConfigParser

        parser = ConfigParser()
        parser.read_config(self.config)
        parser.read_meta(self.meta)
        return parser.get_parsed_content("network_def").eval()

    def _loaded(self) -> Any:
        import torch

        network = self._network()
        network.load_state_dict(torch.load(self.checkpoint, weights_only=True))
        return network

    def _example(self) -> Any:
        """Noise in the shape that metadata.json states, with n = 2, p = 1 and 32 for any size."""
        import torch
        from monai.utils.safeeval import safe_eval

        image = metadata(self.bundle)["network_data_format"]["inputs"]["image"]
        shape = [
            32 if size == "*" else int(safe_eval(size, {"n": 2, "p": 1})) if isinstance(size, str) else size
            for size in image["spatial_shape"]
        ]
        return torch.rand(1, image["num_channels"], *shape, generator=torch.Generator().manual_seed(0))

    def _agrees(self, exported: Any) -> None:
        import torch

        x = self._example()
        with torch.no_grad():
            expected, found = self._loaded()(x), exported(x)
        if found.shape != expected.shape or not torch.allclose(found, expected, rtol=1e-4, atol=1e-5):
            raise ValueError("the exported network gives other values than the network")


def _needs_export(*names: str) -> None:
    from importlib.util import find_spec

    missing = [name for name in names if find_spec(name) is None]
    if missing:
        raise ValueError(f"{', '.join(missing)} not installed: pip install monai-labelfx[export]")


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Only what fails is said: no log lines, prints or deprecation notices of the exporters."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
