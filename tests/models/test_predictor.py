"""A network as a function of tiles: what it asks of cuDNN."""

from __future__ import annotations

import torch

from geonorm.models.predictor import plain_float32


def test_cudnn_computes_in_float32_with_fixed_kernels_and_is_not_turned_off() -> None:
    with plain_float32(torch.device("cuda")):
        flags = torch.backends.cudnn
        found = flags.enabled, flags.benchmark, flags.allow_tf32

    assert found == (True, False, False)
