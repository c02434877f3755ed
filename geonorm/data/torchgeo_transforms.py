"""Transforms of a torchgeo data module, run on raw band values."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import kornia.augmentation as K
import torch
from kornia.augmentation.base import _AugmentationBase
from torch import Tensor, nn
from torch.nn.functional import pad

from geonorm.data.augment import is_geometric, together
from geonorm.data.spec import IGNORE_LABEL
from geonorm.errors import InvalidConfigError, one_line

Batch = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Scale:
    """What a Normalize subtracts from raw values and divides them by."""

    means: tuple[float, ...]
    """One for each band."""
    deviations: tuple[float, ...]
    """One for each band, greater than 0."""


@dataclass(frozen=True, kw_only=True)
class Transforms:
    """What is left of a data module's augmentation without its Normalize."""

    steps: tuple[K.AugmentationSequential, ...]
    """The rest, in order."""
    scale: Scale | None
    """What the Normalize said."""
    changes_values: bool
    """Whether some of the rest change intensities: they do so on normalized values."""

    def between(
        self,
        raw: Callable[[Batch], tuple[Tensor, Tensor]],
        shown: Callable[[Tensor, Tensor, Tensor, Batch], Batch],
    ) -> Callable[[Batch], Batch]:
        """Return the transforms as a function of a batch.

        Args:
            raw: Takes image ``(N, C, H, W)`` and labels ``(N, H, W)`` out of a batch.
            shown: Puts image and labels, and where they were filled in ``(N, H, W)``, into it.
        """

        def transform(batch: Batch) -> Batch:
            image, labels = raw(batch)
            return shown(*self(image, labels), batch)

        return transform

    def __call__(self, image: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return transformed raw values and labels, and where transforms have filled in: ``(N, H, W)``, bool."""
        if not self.steps:
            return image, labels, torch.zeros_like(labels, dtype=torch.bool)
        means, deviations = self._units(image)
        # What a transform fills in is 0: the mean of the image, and no label where those count from 1.
        seen, marks = (image - means) / deviations, labels[:, None].to(image.dtype) + 1
        for step in self.steps:
            try:
                seen, marks = step(seen, marks)
            except (AssertionError, ValueError, RuntimeError) as error:
                raise InvalidConfigError(
                    f"{type(step[0]).__name__} of the data module fails on images of shape {tuple(image.shape)}: "
                    f"{one_line(error, 160)} Its patch_size must fit into the images."
                ) from error
        marks = marks[:, 0].round().long()
        labels = (marks - 1).clamp(min=0).to(torch.uint8)
        return seen * deviations + means, labels, marks == 0

    def _units(self, image: Tensor) -> tuple[Tensor, Tensor]:
        if self.scale is None:
            return image.new_zeros(()), image.new_ones(())
        means, deviations = (
            image.new_tensor(values)[:, None, None] for values in (self.scale.means, self.scale.deviations)
        )
        return means, deviations if self.changes_values else image.new_ones(())


def lift(augmentation: Any, num_bands: int, *, place: str, training: bool) -> Transforms:
    """Return a data module's augmentation without its Normalize.

    Args:
        augmentation: As the data module holds it; not changed.
        num_bands: Bands of the images.
        place: What it is called in messages.
        training: Random changes of intensity are for training alone, after the Normalize.

    Raises:
        InvalidConfigError: Something in it changes intensities, and no scale of the model can stand for it.
    """
    scale: Scale | None = None
    rest: list[nn.Module] = []
    changes_values = False
    for step in _steps(augmentation, place):
        name = type(step).__name__
        if isinstance(step, K.Normalize) and scale is None and not changes_values:
            scale = _scale_of(step, num_bands, place)
        elif is_geometric(step):
            rest.append(step)
        elif training and isinstance(step, K.IntensityAugmentationBase2D) and not isinstance(step, FIXED):
            changes_values = True
            rest.append(step)
        else:
            raise InvalidConfigError(
                f"{place} has {name}, which changes the values in front of the model; only its Rescale may, so that "
                f"maps of raw files see what training saw. Take {name} out of {place}: a scale is set by "
                "--model.band_means and --model.band_deviations, random changes of training by --augment."
            )
    again = augmentation.same_on_batch if isinstance(augmentation, K.AugmentationSequential) else None
    steps = tuple(together(step, same_on_batch=again) for step in rest)
    return Transforms(steps=steps, scale=scale, changes_values=changes_values)


FIXED = (K.Normalize, K.Denormalize)


def with_room_to_crop(transforms: Any, *, place: str) -> Any:
    """Return transforms of single samples that crop their middle, so that samples smaller than that are extended.

    What is added is NaN in images and `IGNORE_LABEL` in masks: chips end at the edge of a tile.

    Raises:
        InvalidConfigError: A transform of kornia that changes intensities.
    """
    if not isinstance(transforms, K.AugmentationSequential):
        return transforms
    if lift(transforms, 0, place=place, training=False).scale is not None:
        raise InvalidConfigError(
            f"{place} normalizes; geonorm takes the scale of a torchgeo data module from the Normalize in its aug, or "
            "from --model.band_means and --model.band_deviations. Leave it out."
        )
    crop = next((step for step in _steps(transforms, place) if isinstance(step, K.CenterCrop)), None)
    if crop is None:
        return transforms
    height, width = crop.size

    def transform(sample: Batch) -> Batch:
        rows, cols = (max(0, side - had) for side, had in zip((height, width), sample["image"].shape[-2:], strict=True))
        added = {"image": float("nan"), "mask": IGNORE_LABEL}
        room = {key: pad(sample[key], (0, cols, 0, rows), value=value) for key, value in added.items()}
        return transforms({**sample, **room})

    return transform


def _steps(augmentation: Any, place: str) -> Sequence[nn.Module]:
    """Return the single transforms of an augmentation, in order."""
    if isinstance(augmentation, K.VideoSequential):
        raise InvalidConfigError(
            f"{place} is for several images of a place at once (VideoSequential). geonorm segments single images."
        )
    if isinstance(augmentation, nn.Sequential):
        return [step for child in augmentation for step in _steps(child, place)]
    if isinstance(augmentation, nn.Module):
        return [augmentation]
    raise InvalidConfigError(
        f"{place} is {getattr(augmentation, '__name__', type(augmentation).__name__)}, a function that may change the "
        "values in front of the model. Give a kornia.augmentation.AugmentationSequential."
    )


def _scale_of(step: nn.Module, num_bands: int, place: str) -> Scale:
    assert isinstance(step, _AugmentationBase)
    said = []
    for name in ("mean", "std"):
        values = torch.as_tensor(step.flags[name], dtype=torch.float32).flatten().tolist()
        if num_bands and len(values) not in (1, num_bands):
            raise InvalidConfigError(
                f"{place} normalizes {len(values)} bands, but the images have {num_bands}. Give the data module the "
                "bands that its statistics are of."
            )
        said.append(tuple(values * num_bands if len(values) == 1 else values))
    means, deviations = said[0], tuple(map(abs, said[1]))  # a sign is no scale: a network learns with either
    if not all(deviations):
        raise InvalidConfigError(f"{place} divides by {deviations}; deviations must not be 0.")
    return Scale(means=means, deviations=deviations)
