"""Weights by the names of torchgeo, for the encoders of smp: fetched, checked, adapted, and what scaled their input."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn

from geonorm.errors import InvalidConfigError, one_line

HEAD = "segmentation_head."
COUNTER = "num_batches_tracked"


def is_torchgeo_name(weights: str | None) -> bool:
    """Say whether weights are named as torchgeo names them, e.g. ``ResNet50_Weights.SENTINEL2_ALL_MOCO``.

    Example:
        >>> is_torchgeo_name("ResNet50_Weights.SENTINEL2_ALL_MOCO"), is_torchgeo_name("imagenet")
        (True, False)
    """
    return weights is not None and "_Weights." in weights


@torch.no_grad()
def take_named_weights(network: Any, name: str, *, encoder: str, in_channels: int) -> tuple[list[float], list[float]]:
    """Load weights of torchgeo into a network of smp; return mean and deviation that raw values are scaled by.

    Weights of an encoder fill the encoder; those of a whole U-Net everything but the head, which is new. Weights of
    three bands are spread over further ones in turn, as smp and timm do with those of ImageNet.

    Args:
        network: Of smp, with ``in_channels`` bands; changed in place.
        name: Name of the weights at torchgeo.
        encoder: Name of the encoder at smp, for messages.
        in_channels: Bands of the images.

    Raises:
        InvalidConfigError: No such weights, another encoder, other bands, a transform that is no scale, no network
            connection.
    """
    weights = _found(name)
    bands = _check_bands(weights, name, in_channels)
    means, deviations = scale_behind(weights.transforms, bands, name)
    tensors = _fetched(weights, name)
    first = next((key for key, tensor in tensors.items() if tensor.dim() == 4), None)
    if bands != in_channels and first is not None:
        tensors[first] = _spread(tensors[first], in_channels)
        rank_zero_info(
            f"{name} knows {bands} bands; its first convolution is spread over the {in_channels} of the data."
        )
    whole = any(key.startswith("encoder.") for key in tensors)
    if whole:
        tensors = {key: value for key, value in tensors.items() if not key.startswith(HEAD)}
    target: nn.Module = network if whole else network.encoder
    _load(target, tensors, name=name, encoder=encoder, meta=weights.meta)
    return [means[band % bands] for band in range(in_channels)], [
        deviations[band % bands] for band in range(in_channels)
    ]


def scale_behind(transforms: Any, bands: int, name: str) -> tuple[list[float], list[float]]:
    """Return mean and deviation of the one Normalize that stands for all in a transform, one number per band.

    Raises:
        InvalidConfigError: Something else in it changes values.
    """
    means, deviations = torch.zeros(bands, dtype=torch.float64), torch.ones(bands, dtype=torch.float64)
    steps = transforms.modules() if isinstance(transforms, nn.Module) else [transforms]
    for step in steps:
        kind = type(step).__name__
        if kind == "Normalize":
            flags = getattr(step, "flags", None) or vars(step)
            mean, std = (torch.as_tensor(flags[key], dtype=torch.float64).flatten() for key in ("mean", "std"))
            # (x - means) / deviations, and then (that - mean) / std.
            means, deviations = means + deviations * mean, deviations * std
        elif kind not in SHAPES_ONLY and not isinstance(step, nn.Sequential):
            raise InvalidConfigError(
                f"The weights {name} want their input changed by {kind}, for which no scale of the model can stand. "
                "Choose other weights."
            )
    return means.tolist(), deviations.tolist()


FAMILIES = ("resnet", "vit", "U-Net")
"""Beginnings of the models of torchgeo whose weights have the names and shapes of smp's encoders."""
SHAPES_ONLY = frozenset({"Resize", "CenterCrop", "Identity", "InterpolationMode"})
"""Transforms that change sizes: geonorm reads windows of any size instead."""


def _found(name: str) -> Any:
    from torchgeo.models import get_weight, list_models  # takes seconds, and labelling a raster does without
    from torchgeo.models.api import get_model_weights

    try:
        return get_weight(name)
    except (ValueError, KeyError) as error:
        known: set[str] = set()
        for model in list_models():
            with suppress(KeyError):  # some have no weights
                known.update(str(one) for one in get_model_weights(model))
        close = difflib.get_close_matches(name, sorted(known), n=3, cutoff=0.3)
        raise InvalidConfigError(
            f"torchgeo has no weights named {name!r}. Close: {', '.join(close)}. All: torchgeo.models."
        ) from error


def _check_bands(weights: Any, name: str, in_channels: int) -> int:
    """Return the bands that weights know."""
    bands: int | None = weights.meta.get("in_chans")
    if bands is None or not str(weights.meta.get("model")).startswith(FAMILIES):
        raise InvalidConfigError(f"{name} does not fit any encoder of smp. {_that_fit()}")
    if bands in (in_channels, 3) and in_channels >= bands:
        return bands
    names = ", ".join(weights.meta.get("bands") or ())
    others = [str(one) for one in type(weights) if one.meta.get("in_chans") == in_channels]
    others = others or [str(one) for one in type(weights) if one.meta.get("in_chans") == 3 <= in_channels]
    raise InvalidConfigError(
        f"{name} knows {bands} bands ({names}), the data have {in_channels}. Give data with these bands in this order"
        + (f", or one of {', '.join(others[:4])}." if others else ", or other weights.")
    )


def _fetched(weights: Any, name: str) -> dict[str, Tensor]:
    try:
        return dict(weights.get_state_dict(progress=True))
    except (OSError, RuntimeError) as error:
        raise InvalidConfigError(
            f"The weights {name} could not be fetched: {one_line(error, 160)}. Check the network connection, or start "
            "without them (weights: null)."
        ) from error


def _spread(kernel: Tensor, in_channels: int) -> Tensor:
    """Return a first convolution ``(O, C, h, w)`` for more bands, with the same sum over equal ones."""
    known = kernel.shape[1]
    return kernel[:, [band % known for band in range(in_channels)]] * (known / in_channels)


def _load(
    target: nn.Module, tensors: Mapping[str, Tensor], *, name: str, encoder: str, meta: Mapping[str, Any]
) -> None:
    """Load tensors if every tensor of the target is among them, under the names of smp's or of timm's encoders."""
    own = target.state_dict()
    needed = {key for key in own if not key.endswith(COUNTER) and not key.startswith(HEAD)}
    best: dict[str, Tensor] = {}
    for prefix in ("", "model."):
        fitting = {
            prefix + key: tensor
            for key, tensor in tensors.items()
            if prefix + key in own and own[prefix + key].shape == tensor.shape
        }
        best = max(best, fitting, key=len)
    if not needed <= set(best):
        taken = len(needed & set(best))
        raise InvalidConfigError(
            f"{name} does not fit the encoder {encoder!r}: {taken} of its {len(needed)} tensors are there. "
            f"{_that_takes(meta)}"
        )
    target.load_state_dict(best, strict=False)


def _that_takes(meta: Mapping[str, Any]) -> str:
    """Return which encoder takes weights."""
    model = str(meta.get("model", ""))
    if "encoder" in meta:
        return f"It is a U-Net: take arch unet with encoder {meta['encoder']}."
    if model.startswith("resnet"):
        return "Take encoder resnet18, resnet50 or resnet152, as the weights are called."
    if model.startswith("vit") and "patch16_224" in model:
        return f"Take arch dpt with encoder tu-{model}."
    return _that_fit()


def _that_fit() -> str:
    return "ResNet18, ResNet50, ResNet152 and Unet weights do, and ViTSmall16, ViTBase16 and ViTLarge16 with arch dpt."
