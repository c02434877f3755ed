"""What a network is trained to make small: losses over the pixels that count.

Every loss is called as ``loss(logits, labels)`` with logits ``(N, K, H, W)`` and labels ``(N, H, W)`` (int64), and
gives one number. Pixels labelled `IGNORE_LABEL` have no part in it; where no pixel counts it is 0, and so is its
gradient.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import segmentation_models_pytorch as smp
import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

from geonorm.data.spec import IGNORE_LABEL
from geonorm.errors import GeonormError, InvalidConfigError, name_some, one_line

ClassWeighting = Literal["balanced", "log"]
"""Weights of classes from their shares p of the training pixels.

``"balanced"``: ``1 / (K p)``, so that all K classes weigh the same (King and Zeng, 2001; scikit-learn's rule).
``"log"``: ``1 / ln(1.02 + p)``, which is at most 50, and gentler with rare classes (Paszke et al., ENet, 2016).
"""
ClassWeights = list[float] | ClassWeighting | None


class CrossEntropy(nn.Module):
    """The mean of ``-log p(label)`` over the pixels that count, p by softmax.

    Args:
        class_weights: Weight of the pixels of each class; the mean is then weighted. ``"balanced"`` or ``"log"``: from
            the shares of the classes in the training images, see `ClassWeighting`. None: all alike.
    """

    class_weights: Tensor | None

    def __init__(self, class_weights: ClassWeights = None) -> None:
        super().__init__()
        # Not persistent: a checkpoint is the same whatever loss made it.
        self.class_weighting = class_weights if isinstance(class_weights, str) else None
        self.register_buffer("class_weights", checked_weights(class_weights), persistent=False)

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the loss."""
        check_class_weights(self.class_weights, logits, self.class_weighting)
        # Not cross_entropy's own mean: that is NaN for a batch in which no pixel counts.
        total = cross_entropy(logits, labels, self.class_weights, ignore_index=IGNORE_LABEL, reduction="sum")
        if self.class_weights is None:
            return total / (labels != IGNORE_LABEL).sum().clamp(min=1)
        return _over(total, weights_of_labels(labels, self.class_weights))


class BinaryCrossEntropy(nn.Module):
    """Cross-entropy of two classes, from the difference of their logits: the number that `CrossEntropy` gives.

    The numbers agree, the steps of an optimizer do not agree with those of a network that gives a single logit. The
    gradient reaches the two logits with opposite signs, so both rows of the last layer move, and their difference
    twice as far: under Adam by about 2 learning rates a step where a single logit's row moves by 1, under SGD by twice
    the gradient. ``single_logit`` of `geonorm.tasks.SegmentationTask` keeps the first logit at 0 and lets the second
    learn alone, exactly as a single logit would; the network still gives ``(N, 2, H, W)``.

    Args:
        class_weights: As of `CrossEntropy`.
    """

    class_weights: Tensor | None

    def __init__(self, class_weights: ClassWeights = None) -> None:
        super().__init__()
        self.class_weighting = class_weights if isinstance(class_weights, str) else None
        self.register_buffer("class_weights", checked_weights(class_weights), persistent=False)

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the loss."""
        if logits.shape[1] != 2:
            raise InvalidConfigError(
                f"BinaryCrossEntropy is for two classes, got {logits.shape[1]}. Use geonorm.tasks.losses.CrossEntropy."
            )
        check_class_weights(self.class_weights, logits, self.class_weighting)
        weights = (labels != IGNORE_LABEL).to(logits.dtype)
        if self.class_weights is not None:
            weights = weights_of_labels(labels, self.class_weights)
        is_second = (labels == 1).to(logits.dtype)
        difference = logits[:, 1] - logits[:, 0]
        return _over(binary_cross_entropy_with_logits(difference, is_second, weights, reduction="sum"), weights)


class Focal(nn.Module):
    """The mean of ``-(1 - p)^gamma log p`` over the pixels that count, p the softmax of the label's class.

    Source: Lin et al., ICCV 2017, equation (4).
    Differs: segmentation_models_pytorch 0.6 takes several classes one against the rest, each by its own sigmoid. A map
    is made by softmax, whose probabilities that would distort (of two classes: the logit doubled), so the softmax is
    in the loss here. For two classes it is their binary form, of the difference of the logits. Theirs is NaN where no
    pixel counts.

    Args:
        gamma: How fast pixels lose weight as they are called right; 0 is cross-entropy.
        class_weights: As of `CrossEntropy`.
    """

    class_weights: Tensor | None

    def __init__(self, gamma: float = 2.0, class_weights: ClassWeights = None) -> None:
        super().__init__()
        if gamma < 0:
            raise InvalidConfigError(f"gamma must not be negative, got {gamma}. 2 is the paper's.")
        self.gamma = gamma
        self.class_weighting = class_weights if isinstance(class_weights, str) else None
        self.register_buffer("class_weights", checked_weights(class_weights), persistent=False)

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the loss."""
        check_class_weights(self.class_weights, logits, self.class_weighting)
        surprise = cross_entropy(logits, labels, ignore_index=IGNORE_LABEL, reduction="none")
        # Away from 0, where the slope of a power below 1 is infinite.
        missing = -torch.expm1(-surprise)
        each = missing.clamp(min=1e-6) ** self.gamma * surprise
        if self.class_weights is None:
            return each.sum() / (labels != IGNORE_LABEL).sum().clamp(min=1)
        weights = weights_of_labels(labels, self.class_weights)
        return _over((each * weights).sum(), weights)


class _Overlap(nn.Module):
    """One minus a soft measure of overlap of each class over the batch, by a loss of segmentation_models_pytorch."""

    made_by: Any

    def __init__(
        self,
        classes: list[int] | None = None,
        class_weights: ClassWeights = None,
        smooth: float = 0.0,
        log_loss: bool = False,
    ) -> None:
        super().__init__()
        self.class_weighting = class_weights if isinstance(class_weights, str) else None
        self.class_weights = checked_weights(class_weights)
        self.overlap = self.made_by(
            "multiclass",
            classes=_checked_classes(classes, class_weights),
            class_weights=None if isinstance(class_weights, str) else class_weights,
            smooth=smooth,
            log_loss=log_loss,
            ignore_index=IGNORE_LABEL,
        )
        for name in ("classes", "class_weights"):  # fetching them in each step, a GPU would be waited for
            values = self.overlap.__dict__.pop(name)
            self.overlap.register_buffer(name, values, persistent=False)

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the loss."""
        check_class_weights(self.class_weights, logits, self.class_weighting)
        # Theirs multiplies by 0 what does not count, and 0 times infinity would be no number.
        return self.overlap(torch.where((labels != IGNORE_LABEL)[:, None], logits, 0), labels)


class Dice(_Overlap):
    """One minus the soft Dice score of each class over the batch, averaged over the classes.

    A class that no pixel of the batch has adds 0, as in segmentation_models_pytorch, whose loss this is.

    Source: Milletari et al., 3DV 2016, as ``segmentation_models_pytorch.losses.DiceLoss``.

    Args:
        classes: Numbers of the classes that take part; None: all. ``[1]`` for buildings alone.
        class_weights: Weight of each class in the average, one for every class of the data, or a rule as of
            `CrossEntropy`. None: all alike.
        smooth: Added above and below the line.
        log_loss: ``-log`` of the score instead of one minus it.
    """

    made_by = smp.losses.DiceLoss


class Jaccard(_Overlap):
    """One minus the soft IoU of each class over the batch, averaged over the classes.

    A class that no pixel of the batch has adds 0, as in segmentation_models_pytorch, whose loss this is.

    Source: Rahman and Wang, ISVC 2016, as ``segmentation_models_pytorch.losses.JaccardLoss``.

    Args:
        classes: As of `Dice`.
        class_weights: As of `Dice`.
        smooth: As of `Dice`.
        log_loss: As of `Dice`.
    """

    made_by = smp.losses.JaccardLoss


class Lovasz(nn.Module):
    """Lovasz-Softmax: the convex extension of one minus the IoU of each class that occurs, averaged over these.

    Over the whole batch, not image by image. It sorts the pixels that count, so a GPU is waited for until their number
    is known; no other loss here does that.

    Source: Berman et al., CVPR 2018, as ``segmentation_models_pytorch.losses.LovaszLoss``.
    Differs: theirs gives an empty tensor where no pixel counts.
    """

    def __init__(self) -> None:
        super().__init__()
        self.extension = smp.losses.LovaszLoss("multiclass")

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the loss."""
        logits, labels = pixels_that_count(logits, labels)
        # Theirs fails in float64.
        return self.extension(logits.to(torch.float32), labels) if labels.numel() else logits.sum()


class WeightedSum(nn.Module):
    """Several losses, each times its weight, added up.

    Args:
        losses: What to add, each by its class path.
        weights: One number for each; None: 1 each.

    Raises:
        InvalidConfigError: No loss, or not one weight for each.
    """

    def __init__(self, losses: list[nn.Module], weights: list[float] | None = None) -> None:
        super().__init__()
        weights = [1.0] * len(losses) if weights is None else weights
        if not losses or len(weights) != len(losses):
            raise InvalidConfigError(
                f"WeightedSum needs one weight for each loss, got {len(weights)} weights for {len(losses)} losses."
            )
        self.losses = nn.ModuleList(losses)
        self.weights = list(weights)

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the sum."""
        parts = [weight * loss(logits, labels) for weight, loss in zip(self.weights, self.losses, strict=True)]
        return sum(parts[1:], parts[0])


def check_loss(loss: nn.Module, num_classes: int) -> None:
    """Try a loss on a few pixels, so that what cannot work is said before the training.

    Raises:
        InvalidConfigError: It fails, does not give one finite number, looks at pixels that do not count, is not a
            number where none counts, or would have to be kept in checkpoints.
    """
    name = type(loss).__name__
    if loss.state_dict() or next(loss.parameters(), None) is not None:
        raise InvalidConfigError(
            f"The loss {name} holds tensors that a checkpoint would have to keep. Use one of geonorm.tasks.losses; "
            "they take class_weights."
        )
    random = torch.Generator().manual_seed(0)
    logits = torch.randn(1, num_classes, 4, 6, generator=random)
    labels = torch.arange(24).reshape(1, 4, 6) % num_classes
    labels[:, :2] = IGNORE_LABEL
    elsewhere = logits.clone()
    elsewhere[:, :, :2] += torch.randn(1, num_classes, 2, 6, generator=random)
    try:
        some, other, none = (
            loss(image, target)
            for image, target in ((logits, labels), (elsewhere, labels), (logits, torch.full_like(labels, 255)))
        )
    except GeonormError:
        raise
    except Exception as error:
        raise InvalidConfigError(
            f"The loss {name} fails on logits (N, {num_classes}, H, W) and labels (N, H, W) with {IGNORE_LABEL} where "
            f"nothing counts: {one_line(error) or type(error).__name__}. Those of geonorm.tasks.losses take them."
        ) from error
    if any(not isinstance(value, Tensor) or value.dim() for value in (some, none)):
        raise InvalidConfigError(f"The loss {name} must give one number for a batch, also where no pixel counts.")
    if some != other:
        raise InvalidConfigError(
            f"The loss {name} looks at pixels labelled {IGNORE_LABEL}, which do not count. Set ignore_index: "
            f"{IGNORE_LABEL}, or use one of geonorm.tasks.losses."
        )
    if not (torch.isfinite(some) and torch.isfinite(none)):
        raise InvalidConfigError(
            f"The loss {name} gives {some.item():.3g}, and {none.item():.3g} where no pixel counts. Use one of "
            "geonorm.tasks.losses."
        )


def pixels_that_count(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return logits ``(1, K, P, 1)`` and labels ``(1, P, 1)`` of the P pixels that count."""
    counts = labels != IGNORE_LABEL
    return logits.movedim(1, -1)[counts].T[None, ..., None], labels[counts][None, ..., None]


def weights_of_labels(labels: Tensor, class_weights: Tensor) -> Tensor:
    """Return the weight of each pixel's class, 0 where it does not count."""
    counts = labels != IGNORE_LABEL
    return class_weights[torch.where(counts, labels, 0)] * counts


def weigh_classes(
    loss: nn.Module, class_shares: Sequence[float] | None, class_names: Sequence[str]
) -> dict[str, list[float]]:
    """Give a loss and its parts the weights that they ask for by a rule, and return them by the name of the rule.

    Args:
        loss: It, or what it holds, may have been made with ``class_weights="balanced"``.
        class_shares: Share of each class among the training pixels that count.
        class_names: Their names, for messages.

    Raises:
        InvalidConfigError: The shares are not known, or a class has none.
    """
    given: dict[str, list[float]] = {}
    for part in loss.modules():
        rule: Any = getattr(part, "class_weighting", None)
        if rule is None:
            continue
        if class_shares is None:
            raise InvalidConfigError(
                f"class_weights={rule} needs the shares of the classes, which this data module does not measure. Give "
                "one number for each class."
            )
        given[rule] = weights_of_shares(rule, class_shares, class_names)
        weights = torch.tensor(given[rule], dtype=torch.float32)
        part.class_weights = weights
        if isinstance(part, _Overlap):
            part.overlap.class_weights = weights
    return given


def weights_of_shares(rule: ClassWeighting, class_shares: Sequence[float], class_names: Sequence[str]) -> list[float]:
    """Return the weight of each class; see `ClassWeighting`.

    Raises:
        InvalidConfigError: A class has no share, so that its weight would be infinite.
    """
    if rule == "log":
        return [1 / math.log(1.02 + share) for share in class_shares]
    missing = [name for name, share in zip(class_names, class_shares, strict=True) if not share > 0]
    if missing:
        raise InvalidConfigError(
            f"class_weights=balanced: no training pixel that was looked at is of class {name_some(missing)}. Leave it "
            "out, take class_weights=log, or give one number for each class."
        )
    return [1 / (len(class_shares) * share) for share in class_shares]


def checked_weights(class_weights: ClassWeights) -> Tensor | None:
    """Return weights of classes as a tensor, none of them negative and not all 0; None where a rule is to give them."""
    if class_weights is None or isinstance(class_weights, str):
        if class_weights not in (None, "balanced", "log"):
            raise InvalidConfigError(
                f"class_weights must be one number for each class, balanced or log, got {class_weights!r}."
            )
        return None
    if not all(weight >= 0 for weight in class_weights) or not any(class_weights):
        raise InvalidConfigError(f"class_weights must not be negative, and not all 0, got {list(class_weights)}.")
    return torch.tensor(class_weights, dtype=torch.float32)


def check_class_weights(class_weights: Tensor | None, logits: Tensor, rule: str | None = None) -> None:
    """Raise `InvalidConfigError` unless there is one weight for each class, or none is asked for."""
    if class_weights is None and rule is not None:
        raise InvalidConfigError(
            f"class_weights={rule} has no numbers yet: call geonorm.tasks.losses.weigh_classes first."
        )
    if class_weights is not None and len(class_weights) != logits.shape[1]:
        raise InvalidConfigError(
            f"class_weights needs one number for each of {logits.shape[1]} classes, got {len(class_weights)}."
        )


def _checked_classes(classes: list[int] | None, class_weights: ClassWeights) -> list[int] | None:
    if classes is not None and (not classes or min(classes) < 0):
        raise InvalidConfigError(f"classes must name at least one class by its number from 0, got {classes}.")
    if (
        classes
        and isinstance(class_weights, list)
        and not any(weight for i, weight in enumerate(class_weights) if i in classes)
    ):
        raise InvalidConfigError(f"class_weights are 0 for all of classes {classes}.")
    return classes


def _over(total: Tensor, weights: Tensor) -> Tensor:
    """Divide by a sum of weights; 0 where nothing has weight."""
    weight = weights.sum()
    return total / torch.where(weight > 0, weight, 1)
