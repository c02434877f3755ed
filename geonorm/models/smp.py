"""Every network of segmentation-models-pytorch, with a norm of choice."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import segmentation_models_pytorch as smp
from torch import Tensor, nn
from torch.nn.functional import interpolate
from torch.overrides import TorchFunctionMode

from geonorm.errors import InvalidConfigError, one_line
from geonorm.models.pretrained import is_torchgeo_name, take_named_weights
from geonorm.models.replace import Replacement, replace_norms
from geonorm.models.rescale import Rescale
from geonorm.norms import NormFactory


class SmpNetwork(nn.Module):
    """Map raw band values ``(N, C, H, W)`` to logits ``(N, K, H, W)`` with a network of the smp library.

    Every norm is replaced, those of the encoder included; pretrained convolution weights and the norms' weight and
    bias stay. With pretrained weights `rescale` holds their own transform.

    Args:
        in_channels: Bands C.
        num_classes: Classes K, at least 2.
        norm: Makes the norms; None keeps those of the network.
        arch: Architecture, e.g. ``"unet"``, ``"deeplabv3plus"``.
        encoder: Encoder, e.g. ``"resnet34"``, ``"tu-hrnet_w18"``.
        weights: Pretrained weights of the encoder: smp's, e.g. ``"imagenet"``, or torchgeo's, e.g.
            ``"ResNet50_Weights.SENTINEL2_ALL_MOCO"``; None starts from scratch.
        align_corners: Let interpolation place corners on corners, as foreign weights may need. Then what a pixel
            sees depends on the size of the tile, and no halo is exact.

    Raises:
        InvalidConfigError: Unknown architecture, encoder or weights, or a norm that does not fit.
    """

    replacements: tuple[Replacement, ...]

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        *,
        norm: NormFactory | None,
        arch: str = "unet",
        encoder: str = "resnet34",
        weights: str | None = None,
        align_corners: bool = False,
    ) -> None:
        super().__init__()
        if num_classes < 2:
            raise InvalidConfigError(f"num_classes must be at least 2, got {num_classes}.")
        theirs = is_torchgeo_name(weights)
        network = _create(arch, encoder, None if theirs else weights, in_channels, num_classes)
        if weights is not None and theirs:
            mean, deviation = take_named_weights(network, weights, encoder=encoder, in_channels=in_channels)
            self.rescale = Rescale(in_channels, mean=mean, deviation=deviation)
        else:
            self.rescale = _rescale(encoder, weights, in_channels)
        self.align_corners = align_corners
        if not align_corners:
            _unalign(network)
        self.replacements = ()
        if norm is not None:
            network, self.replacements = replace_norms(network, norm)
        self.network = network

    def forward(self, image: Tensor) -> Tensor:
        """Return logits ``(N, K, H, W)`` for raw band values ``(N, C, H, W)``."""
        x = self.rescale(image)
        if self.align_corners:
            return self.network(x)
        with _UnalignedCorners():
            return self.network(x)

    def extra_repr(self) -> str:
        """Return the settings that ``print(model)`` shows."""
        return f"align_corners={self.align_corners}"


def build_smp(
    arch: str,
    encoder: str,
    *,
    in_channels: int,
    num_classes: int,
    norm: NormFactory | None,
    weights: str | None = None,
    align_corners: bool = False,
) -> SmpNetwork:
    """Return an smp network with every norm replaced; see `SmpNetwork`."""
    return SmpNetwork(
        in_channels,
        num_classes,
        norm=norm,
        arch=arch,
        encoder=encoder,
        weights=weights,
        align_corners=align_corners,
    )


class _UnalignedCorners(TorchFunctionMode):
    """Within this context functional interpolation does not align corners."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is interpolate and kwargs.get("align_corners"):
            kwargs = {**kwargs, "align_corners": False}
        return func(*args, **kwargs)


def _create(arch: str, encoder: str, weights: str | None, in_channels: int, num_classes: int) -> nn.Module:
    known = smp.MODEL_ARCHITECTURES_MAPPING
    if arch.lower() not in known:
        raise InvalidConfigError(f"arch must be one of {', '.join(sorted(known))}, got {arch!r}.")
    try:
        return smp.create_model(
            arch, encoder_name=encoder, encoder_weights=weights, in_channels=in_channels, classes=num_classes
        )
    except OSError as error:
        raise InvalidConfigError(
            f"The weights {weights!r} of {encoder} could not be fetched: {one_line(error, 160)}. Check "
            "the network connection, or start without them (weights: null)."
        ) from error
    except (KeyError, ValueError, RuntimeError, NotImplementedError, TypeError) as error:
        raise InvalidConfigError(f"smp cannot make {arch} with encoder {encoder!r}: {one_line(error)}") from error


def _rescale(encoder: str, weights: str | None, in_channels: int) -> Rescale:
    if weights is None:
        return Rescale(in_channels)
    params = smp.encoders.get_preprocessing_params(encoder, pretrained=weights)
    largest = max(params["input_range"] or (0, 1))
    # Raw values are 8-bit; smp's figures belong to values of that range. Further bands take the colours in turn.
    factor = 255 / largest
    mean, deviation = ([params[name][band % 3] * factor for band in range(in_channels)] for name in ("mean", "std"))
    return Rescale(in_channels, mean=mean, deviation=deviation)


def _unalign(network: nn.Module) -> None:
    for module in network.modules():
        if isinstance(module, nn.Upsample) and module.align_corners:
            module.align_corners = False
