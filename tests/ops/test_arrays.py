# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from monai_labelfx.ops._arrays import as_array


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.int64, torch.bool])
def test_shares_memory_and_type(dtype):
    tensor = torch.ones(2, 3).to(dtype)
    array = as_array(tensor)
    assert np.shares_memory(array, tensor.numpy()) and array.dtype == tensor.numpy().dtype


def test_bfloat16_gradients_and_meta_tensors():
    assert as_array(torch.ones(2, dtype=torch.bfloat16)).dtype == np.float32
    assert as_array(torch.ones(2, requires_grad=True)).tolist() == [1, 1]
    assert type(as_array(MetaTensor(torch.ones(2)))) is np.ndarray
