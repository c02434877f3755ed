"""Random changes of training samples by kornia's transforms, on raw band values; each follows from its number alone."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import kornia.augmentation as K
import numpy as np
import torch
from kornia.augmentation.base import _AugmentationBase
from kornia.constants import DataKey, Resample
from torch import Tensor, nn

from geonorm.data.spec import IGNORE_LABEL
from geonorm.errors import InvalidConfigError, one_line

DEVIATIONS = 4
"""So far around the mean the values of a band are taken to reach, where nothing says how far."""
TRIES = 40
FILLS = ("fill", "fill_value", "pad_value")
MOVING = "RandomAffine, RandomRotation, RandomPerspective, RandomElasticTransform, flips or crops"
ANY_BANDS = "RandomBrightness, RandomContrast, RandomGamma, RandomGaussianNoise and RandomGaussianBlur take any bands"


class Augmentations:
    """Change training samples at random: geometry of images and labels, intensities of images.

    Pixels that a geometric transform fills in hold the training mean and have no label; labels are moved, never mixed.
    Intensities are changed as kornia changes values from 0 to 1, in a range of values that stands for these: what comes
    out are raw values again. Pixels without data stay as they are. What happens to a sample follows from ``seed`` and
    its number alone, whatever the batch size, the number of processes, and where a run was resumed.

    Args:
        transforms: Of ``kornia.augmentation``, in order: geometric ones and those of intensities.
        value_range: Raw values that stand for 0 and 1 in every band, e.g. ``[0, 10000]``; None: 0 to 255 for 8-bit
            images, else by the scale of the network: from 0 to the deviation where the mean is 0, else 4 deviations
            around the mean. Values beyond keep their distance.
        seed: Chooses what is drawn.

    Raises:
        InvalidConfigError: Something else than single transforms of kornia, or a range that is empty.
    """

    def __init__(
        self,
        transforms: list[nn.Module] | None = None,
        value_range: list[float] | None = None,
        seed: int = 0,
    ) -> None:
        if seed < 0:
            raise InvalidConfigError(f"augment.seed must not be negative, got {seed}.")
        if value_range is not None and (len(value_range) != 2 or not value_range[0] < value_range[1]):
            raise InvalidConfigError(
                f"augment.value_range must be two raw values, the lower first, got {value_range}. Example: [0, 255]."
            )
        self.transforms = [_ready(transform) for transform in transforms or []]
        self.value_range = value_range
        self.seed = seed

    def check(self, num_bands: int) -> None:
        """Try the transforms of intensities on an image of so many bands.

        Raises:
            InvalidConfigError: One of them does not take it.
        """
        for transform in self.transforms:
            if not isinstance(transform, K.AugmentationSequential):
                _try(transform, num_bands)

    def __call__(
        self,
        image: Tensor,
        labels: Tensor,
        valid: Tensor,
        *,
        numbers: Sequence[int],
        means: Sequence[float],
        deviations: Sequence[float],
        eight_bit: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """Return changed images and labels.

        Args:
            image: ``(N, C, H, W)``, raw values, the mean where there are none.
            labels: ``(N, H, W)``, uint8.
            valid: ``(N, C, H, W)``, bool, where there are values.
            numbers: The number of each sample, counted over all epochs.
            means: Of each band: what is filled in.
            deviations: Of each band.
            eight_bit: Whether the values are from 0 to 255.
        """
        mean = image.new_tensor(means)[:, None, None]
        low, high = self._range(mean, image.new_tensor(deviations)[:, None, None], eight_bit=eight_bit)
        samples = [
            self._one(one, marks, has, mean, low, high - low, number=number)
            for one, marks, has, number in zip(image, labels, valid, numbers, strict=True)
        ]
        shapes = {tuple(one.shape) for one, _ in samples}
        if len(shapes) > 1:
            raise InvalidConfigError(
                f"The augmentations make samples of different sizes, {sorted(shapes)}: a transform that changes the "
                "size needs p: 1."
            )
        images, maps = zip(*samples, strict=True)
        return torch.stack(images), torch.stack(maps)

    def _range(self, mean: Tensor, deviation: Tensor, *, eight_bit: bool) -> tuple[Tensor, Tensor]:
        """Return the raw values of each band that stand for 0 and 1."""
        if self.value_range is not None or eight_bit:
            lowest, highest = self.value_range or (0.0, 255.0)
            return torch.full_like(mean, lowest), torch.full_like(mean, highest)
        is_range = mean == 0
        low = torch.where(is_range, 0.0, mean - DEVIATIONS * deviation)
        return low, torch.where(is_range, deviation, mean + DEVIATIONS * deviation)

    def _one(
        self, image: Tensor, labels: Tensor, valid: Tensor, mean: Tensor, low: Tensor, width: Tensor, *, number: int
    ) -> tuple[Tensor, Tensor]:
        with drawn_from(self.seed, number):
            for transform in self.transforms:
                if isinstance(transform, K.AugmentationSequential):
                    image, labels, valid = moved(transform, image, labels, valid, mean)
                else:
                    image = torch.where(valid, shaded(transform, image, low, width), image)
        return image, labels


def moved(
    transform: K.AugmentationSequential, image: Tensor, labels: Tensor, valid: Tensor, mean: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return an image ``(C, H, W)``, its labels and where it has values, moved; the mean where it was filled in.

    Raises:
        InvalidConfigError: The transform does not take the image, or mixes labels.
    """
    # What a transform fills in is 0: the mean of the image, and no label where those count from 1.
    masks = labels[None].to(image.dtype) + 1
    if not bool(valid.all()):
        masks = torch.cat([masks, valid.to(image.dtype)])
    with _told_in_one_line(transform[0], image):
        seen, marks = transform((image - mean)[None], masks[None])
    seen, marks = seen[0], marks[0]
    if bool((marks != marks.round()).any()):
        raise InvalidConfigError(
            f"augment: {_name(transform[0])} mixes the labels of neighbouring pixels. Take {MOVING} instead."
        )
    filled = marks[0] == 0
    labels = (marks[0] - 1).masked_fill(filled, IGNORE_LABEL).to(torch.uint8)
    valid = (marks[1:] > 0 if len(marks) > 1 else torch.ones_like(seen, dtype=torch.bool)) & ~filled
    return torch.where(valid, seen + mean, mean), labels, valid


def shaded(transform: nn.Module, image: Tensor, low: Tensor, width: Tensor) -> Tensor:
    """Return a raw image ``(C, H, W)`` whose intensities were changed as if ``low`` to ``low + width`` were 0 to 1.

    Values beyond that range keep their distance from it. Nothing becomes negative that was not.
    """
    unit = (image - low) / width
    inside = unit.clamp(0, 1)
    with _told_in_one_line(transform, image):
        changed = transform(inside[None])[0]
    if torch.equal(changed, inside):
        return image  # to the last bit, where chance left it as it was
    raw = low + width * (changed.clamp(0, 1) + (unit - inside))
    return raw.clamp(min=min(0.0, float(image.min())))


@contextmanager
def drawn_from(seed: int, number: int) -> Iterator[None]:
    """Let what kornia draws follow from two numbers; what torch draws elsewhere goes on as if nothing was drawn."""
    with torch.random.fork_rng(devices=[]):  # kornia draws on the CPU, wherever the images are
        state = np.random.SeedSequence([seed, number]).generate_state(1, np.uint64)
        torch.default_generator.manual_seed(int(state[0]) >> 1)
        yield


def _ready(transform: nn.Module) -> nn.Module:
    """Return a transform as it is used: a geometric one together with what moves masks alike."""
    name = _name(transform)
    if isinstance(transform, K.Normalize | K.Denormalize):
        raise InvalidConfigError(
            f"augment: {name} is no augmentation but a scale, which only the model's Rescale may set: "
            "--model.band_means and --model.band_deviations."
        )
    if is_geometric(transform):
        fills = [key for key in FILLS if _is_something(cast(Any, transform).flags.get(key))]
        if fills:
            raise InvalidConfigError(
                f"augment: {name} has a {fills[0]} of its own, but what is filled in is the training mean without a "
                f"label. Leave {fills[0]} out."
            )
        return together(transform)
    if isinstance(transform, K.IntensityAugmentationBase2D):
        return copy.deepcopy(transform)
    if isinstance(transform, K.MixAugmentationBaseV2):
        raise InvalidConfigError(
            f"augment: {name} mixes samples of a batch, so that a sample would depend on its batch. Leave it out."
        )
    raise InvalidConfigError(
        f"augment: {name} is not a single transform of two-dimensional images. Name classes of kornia.augmentation one "
        "by one, such as RandomAffine or RandomBrightness."
    )


def together(transform: nn.Module, *, same_on_batch: bool | None = None) -> K.AugmentationSequential:
    """Return a transform as a function of images and masks, which it moves alike; masks are never interpolated."""
    return K.AugmentationSequential(
        cast(_AugmentationBase, copy.deepcopy(transform)),  # a container tells its parts how to behave
        data_keys=["input", "mask"],
        same_on_batch=same_on_batch,
        # Not what kornia takes by default, which places the corners of masks elsewhere than those of the image.
        extra_args={DataKey.MASK: {"resample": Resample.NEAREST}},
    )


def is_geometric(transform: nn.Module) -> bool:
    """Say whether a transform of kornia moves pixels, and masks alike."""
    others = (K.IntensityAugmentationBase2D, K.MixAugmentationBaseV2)
    return isinstance(transform, K.AugmentationBase2D) and not isinstance(transform, others)


def _try(transform: nn.Module, num_bands: int) -> None:
    image = torch.linspace(0, 1, num_bands * 64 * 64).view(1, num_bands, 64, 64)
    with drawn_from(0, num_bands):
        for _ in range(TRIES):  # chance may leave a sample as it is
            try:
                transform(image)
            except Exception as error:
                raise InvalidConfigError(
                    f"augment: {_name(transform)} does not take images of {num_bands} bands ({one_line(error, 120)}). "
                    f"Leave it out; {ANY_BANDS}."
                ) from error


@contextmanager
def _told_in_one_line(transform: nn.Module, image: Tensor) -> Iterator[None]:
    try:
        yield
    except NotImplementedError as error:
        raise InvalidConfigError(f"augment: {_name(transform)} moves images only. Take {MOVING} instead.") from error
    except (AssertionError, TypeError, ValueError, RuntimeError) as error:
        raise InvalidConfigError(
            f"augment: {_name(transform)} fails on an image of shape {tuple(image.shape)}: {one_line(error, 160)}"
        ) from error


def _name(transform: nn.Module) -> str:
    return type(transform).__name__


def _is_something(fill: Any) -> bool:
    return fill is not None and bool(torch.as_tensor(fill).any())
