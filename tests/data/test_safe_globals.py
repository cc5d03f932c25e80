# SPDX-License-Identifier: Apache-2.0
"""allow_safe_globals: MONAI's enumerations load safely after the call, and not before."""

from __future__ import annotations

import io
import pickle

import pytest
import torch
from monai.utils import LazyAttr, MetaKeys, SpaceKeys, TraceKeys, TraceStatusKeys

from monai_labelfx.data import allow_safe_globals

MEMBERS = [TraceKeys.NONE, TraceStatusKeys.PENDING_DURING_APPLY, LazyAttr.SHAPE, SpaceKeys.RAS, MetaKeys.AFFINE]


@pytest.fixture
def nothing_allowed():
    before = torch.serialization.get_safe_globals()
    torch.serialization.clear_safe_globals()
    yield
    torch.serialization.clear_safe_globals()
    torch.serialization.add_safe_globals(before)


def loaded(member):
    buffer = io.BytesIO()
    torch.save(member, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


@pytest.mark.usefixtures("nothing_allowed")
def test_before_and_after():
    for member in MEMBERS:
        with pytest.raises(pickle.UnpicklingError):
            loaded(member)
    allow_safe_globals()
    allow_safe_globals()
    assert [loaded(member) for member in MEMBERS] == MEMBERS
    assert len(torch.serialization.get_safe_globals()) == len(MEMBERS)
