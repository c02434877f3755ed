"""Checkpoints and logs of Switchable Norm with drawn ratios."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import torch

from geonorm.data.spec import INRIA
from geonorm.models import UNet
from geonorm.norms import NormFactory, SwitchableNorm
from geonorm.tasks import SegmentationTask
from geonorm.tasks.segmentation import NetworkFactory

SMALL = partial(UNet, depth=2, width=4)
NAMES = [f"{block}.{at}" for block in ("encoder.0", "encoder.1", "bottom", "decoder.0", "decoder.1") for at in (1, 4)]
HEAD = "step,layer,statistic,group,normalizer,ratio\n"


def save(path: Path, *, norm: NormFactory = SwitchableNorm, network: NetworkFactory = SMALL, seed: int = 0) -> Path:
    """Save a checkpoint whose control parameters are drawn; return its path."""
    spec = INRIA.with_statistics((120.0,) * 3, (70.0,) * 3)
    task = SegmentationTask(norm, spec, network)
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in task.named_parameters():
            if name.endswith(("mean_weight", "var_weight")):
                value.copy_(torch.randn(value.shape, generator=random))
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"state_dict": task.state_dict(), "geonorm": task.description, "global_step": 70}, path)
    return path


def save_log(folder: Path, *steps: int, names: list[str] = NAMES, seed: int = 1) -> Path:
    """Write a log of drawn ratios of IN, LN and BN; return its folder."""
    random = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "ratios.csv").open("w") as file:
        file.write(HEAD)
        for step in steps:
            for name in names:
                for statistic in ("mean", "var"):
                    shares = random.dirichlet([1, 1, 1])
                    for normalizer, share in zip(("IN", "LN", "BN"), shares, strict=True):
                        file.write(f"{step},{name},{statistic},0,{normalizer},{share:.9g}\n")
    return folder
