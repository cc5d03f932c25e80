# SPDX-License-Identifier: Apache-2.0
"""A whole bundle in miniature, a 3-D U-Net on synthetic NIfTI: what the commands are tested against."""

from __future__ import annotations

import json
from pathlib import Path

import monai
import nibabel
import numpy as np
import torch

from monai_labelfx._version import __version__

TRAIN = """
bundle_root: .
dataset_dir: "$@bundle_root + '/data'"
datalist: "$@dataset_dir + '/datalist.json'"
output_dir: runs/toy
ckpt_dir: "$@output_dir + '/models'"
ckpt_path: "$@ckpt_dir + '/model.pt'"
device: "$torch.device('cpu')"
split: training
seed: 0
max_epochs: 2
channels: [4, 8]
weight: 1.0
network_def:
  _target_: UNet
  spatial_dims: 3
  in_channels: 1
  out_channels: 2
  channels: "@channels"
  strides: [2]
network: "$@network_def.to(@device)"
optimizer: {_target_: torch.optim.Adam, params: "$@network.parameters()", lr: 0.01}
loss: {_target_: torch.nn.CrossEntropyLoss}
loss_function: "$lambda pred, label: @weight * @loss(pred, label[:, 0].long())"
train:
  preprocessing: &load
    _target_: Compose
    transforms:
      - {_target_: LoadImaged, keys: [image, label], reader: NibabelReader}
      - {_target_: EnsureChannelFirstd, keys: [image, label]}
      - {_target_: EnsureTyped, keys: image, dtype: "$torch.float32"}
  dataset:
    _target_: Dataset
    data: "$monai.data.load_decathlon_datalist(@datalist, True, @split, @dataset_dir)"
    transform: "@train#preprocessing"
  dataloader: {_target_: DataLoader, dataset: "@train#dataset", batch_size: 2}
  inferer: {_target_: SimpleInferer}
  handlers:
    - {_target_: CheckpointSaver, save_dir: "@ckpt_dir", save_dict: {model: "@network"}, save_final: true,
       final_filename: model.pt}
    - {_target_: monai_labelfx.engines.RunRecord, output_dir: "@output_dir", seed: "@seed"}
  trainer:
    _target_: SupervisedTrainer
    device: "@device"
    max_epochs: "@max_epochs"
    train_data_loader: "@train#dataloader"
    network: "@network"
    optimizer: "@optimizer"
    loss_function: "@loss_function"
    inferer: "@train#inferer"
    train_handlers: "@train#handlers"
    decollate: false
initialize: ["$monai.utils.set_determinism(seed=@seed)"]
run: ["$@train#trainer.run()"]
"""

EVALUATE = """
split: test
train#trainer#max_epochs: 1
validate:
  preprocessing: "@train#preprocessing"
  dataset: {_target_: Dataset, data: "@train#dataset#data", transform: "@validate#preprocessing"}
  dataloader: {_target_: DataLoader, dataset: "@validate#dataset", batch_size: 1}
  inferer: {_target_: SimpleInferer}
  postprocessing: {_target_: AsDiscreted, keys: pred, argmax: true}
  key_metric:
    accuracy:
      _target_: ignite.metrics.Accuracy
      output_transform: "$lambda x: (x[0]['pred'].flatten().long(), x[0]['label'].flatten().long())"
  handlers:
    - {_target_: CheckpointLoader, load_path: "@ckpt_path", load_dict: {model: "@network"}}
    - {_target_: monai_labelfx.engines.OverviewSaver, output_dir: "@output_dir",
       items: [[image, image], [label, labels, reference], [pred, labels], [absent, image]]}
    - {_target_: monai_labelfx.engines.RunRecord, output_dir: "@output_dir"}
  evaluator:
    _target_: SupervisedEvaluator
    device: "@device"
    val_data_loader: "@validate#dataloader"
    network: "@network"
    inferer: "@validate#inferer"
    postprocessing: "@validate#postprocessing"
    key_val_metric: "@validate#key_metric"
    val_handlers: "@validate#handlers"
run: ["$@validate#evaluator.run()"]
"""

INFERENCE = """
imports: ["$import glob"]
bundle_root: .
dataset_dir: "$@bundle_root + '/data'"
output_dir: runs/toy/inference
ckpt_path: "$@bundle_root + '/models/model.pt'"
device: "$torch.device('cpu')"
channels: [4, 8]
network_def:
  _target_: UNet
  spatial_dims: 3
  in_channels: 1
  out_channels: 2
  channels: "@channels"
  strides: [2]
network: "$@network_def.to(@device)"
preprocessing:
  _target_: Compose
  transforms:
    - {_target_: LoadImaged, keys: image, reader: NibabelReader}
    - {_target_: EnsureChannelFirstd, keys: image}
    - {_target_: EnsureTyped, keys: image, dtype: "$torch.float32"}
dataset:
  _target_: Dataset
  data: "$[{'image': f} for f in sorted(glob.glob(@dataset_dir + '/*_image.nii.gz'))]"
  transform: "@preprocessing"
dataloader: {_target_: DataLoader, dataset: "@dataset", batch_size: 1}
inferer: {_target_: SimpleInferer}
postprocessing:
  _target_: Compose
  transforms:
    - {_target_: AsDiscreted, keys: pred, argmax: true}
    - {_target_: SaveImaged, keys: pred, output_dir: "@output_dir", separate_folder: false, print_log: false,
       resample: false}
handlers:
  - {_target_: CheckpointLoader, load_path: "@ckpt_path", load_dict: {model: "@network"}}
evaluator:
  _target_: SupervisedEvaluator
  device: "@device"
  val_data_loader: "@dataloader"
  network: "@network"
  inferer: "@inferer"
  postprocessing: "@postprocessing"
  val_handlers: "@handlers"
initialize: ["$monai.utils.set_determinism(seed=0)"]
run: ["$@evaluator.run()"]
"""

DEMO = """
data: {_target_: toy_bundle.make_data, size: 8}
data_choices:
  larger: {_target_: toy_bundle.make_data, size: 12}
presets: [short]
overrides: {dataset_dir: "{data_dir}", datalist: "{data}"}
steps:
  - {name: toy, config: [train.yaml], done: [models/model.pt, metrics.json]}
  - name: toy_test
    workflow: evaluate
    overrides: {ckpt_dir: "{out}/toy/models"}
  - name: predictions
    workflow: inference
    config: [inference.yaml]
    overrides: {ckpt_path: "{out}/toy/models/model.pt", dataset_dir: "{data_dir}"}
table:
  rows: {toy_test: Toy}
  columns: {accuracy: accuracy}
note: A toy, to show that the commands work.
"""

LOGGING = """
[loggers]
keys=root
[handlers]
keys=console
[formatters]
keys=plain
[logger_root]
level=WARNING
handlers=console
[handler_console]
class=StreamHandler
level=WARNING
formatter=plain
args=(sys.stderr,)
[formatter_plain]
format=%(levelname)s %(message)s
"""

FILES = {
    "LICENSE": "Apache License, Version 2.0",
    "docs/README.md": "# Toy",
    "configs/train.yaml": TRAIN,
    "configs/evaluate.yaml": EVALUATE,
    "configs/inference.yaml": INFERENCE,
    "configs/multi_gpu_train.yaml": "device: \"$torch.device('cpu')\"",
    "configs/demo.yaml": DEMO,
    "configs/logging.conf": LOGGING,
    "configs/presets/short.yaml": "max_epochs: 1\ntrain#dataloader#batch_size: 1",
    "configs/presets/wide.yaml": "channels: [8, 8]",
    "configs/rivals/heavy.yaml": "weight: 10.0",
    "configs/stages/twice/01_first.yaml": "max_epochs: 1",
    "configs/stages/twice/02_second.yaml": """
stages_dir: ""
first: "$torch.load(@stages_dir + '/01_first/models/model.pt', weights_only=True)"
network: "$(@network_def.load_state_dict(@first), @network_def)[1]"
""",
}


def make_bundle(root: Path) -> Path:
    """Write the bundle ``toy_segmentation`` below ``root``."""
    bundle = root / "toy_segmentation"
    image = {
        "type": "image",
        "format": "magnitude",
        "num_channels": 1,
        "spatial_shape": ["2*n", "2*n", "2*n"],
        "dtype": "float32",
        "value_range": [],
        "is_patch_data": False,
        "channel_def": {"0": "image"},
    }
    pred = {**image, "format": "segmentation", "num_channels": 2, "channel_def": {"0": "background", "1": "object"}}
    meta = {
        "schema": "https://example.org/schema.json",
        "version": "0.1.0",
        "changelog": {"0.1.0": "first"},
        "monai_version": monai.__version__,
        "pytorch_version": torch.__version__.split("+")[0],
        "numpy_version": np.__version__,
        "required_packages_version": {"monai-labelfx": __version__, "nibabel": nibabel.__version__},
        "task": "Segment bright cubes",
        "description": "A toy",
        "authors": "nobody",
        "copyright": "nobody",
        "network_data_format": {"inputs": {"image": image}, "outputs": {"pred": pred}},
    }
    for name, text in {**FILES, "configs/metadata.json": json.dumps(meta)}.items():
        file = bundle / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return bundle


def make_data(destination: str | Path, size: int = 8) -> Path:
    """Two training and one test volume with a bright cube in noise; returns the datalist."""
    folder = Path(destination)
    folder.mkdir(parents=True, exist_ok=True)
    generator, splits = np.random.default_rng(0), {"training": [], "test": []}
    for number, split in enumerate(("training", "training", "test")):
        label = np.zeros((size,) * 3, np.uint8)
        label[2:5, 1 + number : 5 + number, 2:6] = 1
        item = {"image": f"{number}_image.nii.gz", "label": f"{number}_label.nii.gz"}
        affine = np.diag([1.0, 1.0, 2.0, 1.0])
        noisy = label + generator.normal(0, 0.3, label.shape)
        nibabel.save(nibabel.Nifti1Image(noisy.astype(np.float32), affine), folder / item["image"])
        nibabel.save(nibabel.Nifti1Image(label, affine), folder / item["label"])
        splits[split].append(item)
    file = folder / "datalist.json"
    file.write_text(json.dumps(splits))
    return file
