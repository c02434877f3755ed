"""Losses: their definitions written out, pixels that do not count, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import segmentation_models_pytorch as smp
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

from geonorm.data.spec import IGNORE_LABEL, INRIA
from geonorm.errors import InvalidConfigError
from geonorm.models import SmpNetwork, UNet
from geonorm.norms import BatchNorm, GroupNorm
from geonorm.tasks import SegmentationTask
from geonorm.tasks.losses import (
    BinaryCrossEntropy,
    CrossEntropy,
    Dice,
    Focal,
    Jaccard,
    Lovasz,
    WeightedSum,
    check_loss,
)
from geonorm.tasks.segmentation import NetworkFactory
from geonorm.tasks.single_logit import silence_first_logit, with_first_logit_fixed

LOSSES: dict[str, Callable[[], nn.Module]] = {
    "cross-entropy": CrossEntropy,
    "weighted cross-entropy": partial(CrossEntropy, [1.0, 3.0]),
    "binary": BinaryCrossEntropy,
    "weighted binary": partial(BinaryCrossEntropy, [1.0, 3.0]),
    "focal": Focal,
    "focal, gamma below 1": partial(Focal, 0.5, [1.0, 3.0]),
    "Dice": Dice,
    "Dice of buildings": partial(Dice, [1], [1.0, 3.0], 1.0, True),
    "Jaccard": Jaccard,
    "Lovasz": Lovasz,
    "sum": lambda: WeightedSum([CrossEntropy(), Dice(), Lovasz()], [1.0, 0.5, 2.0]),
}
each_loss = pytest.mark.parametrize("make", LOSSES.values(), ids=LOSSES)


def drawn(num_classes: int = 2, *, ignored: float = 0.3, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Return logits and labels of two maps that are not square."""
    random = torch.Generator().manual_seed(seed)
    logits = torch.randn(2, num_classes, 6, 9, generator=random, dtype=torch.float64)
    labels = torch.randint(0, num_classes, (2, 6, 9), generator=random)
    labels[torch.rand(2, 6, 9, generator=random) < ignored] = IGNORE_LABEL
    return logits, labels


def pixel_by_pixel(logits: Tensor, labels: Tensor) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Return probabilities (P, K) and labels (P,) of the pixels that count, collected in a loop."""
    probs, kept = [], []
    for n in range(logits.shape[0]):
        for row in range(logits.shape[2]):
            for col in range(logits.shape[3]):
                if labels[n, row, col] != IGNORE_LABEL:
                    odds = np.exp(logits[n, :, row, col].numpy())
                    probs.append(odds / odds.sum())
                    kept.append(int(labels[n, row, col]))
    return np.array(probs), np.array(kept)


# Definitions


@pytest.mark.parametrize("num_classes", [2, 3])
def test_cross_entropy_is_the_weighted_mean_surprise(num_classes: int) -> None:
    logits, labels = drawn(num_classes)
    weights = [1.0, 3.0, 0.5][:num_classes]
    probs, kept = pixel_by_pixel(logits, labels)
    surprise, weight = -np.log(probs[range(len(kept)), kept]), np.array(weights)[kept]

    plain, weighted = CrossEntropy()(logits, labels), CrossEntropy(weights).double()(logits, labels)

    assert plain.item() == pytest.approx(surprise.mean())
    assert weighted.item() == pytest.approx((surprise * weight).sum() / weight.sum())


@pytest.mark.parametrize("weights", [None, [1.0, 3.0]])
def test_the_binary_form_has_value_and_gradient_of_two_class_cross_entropy(weights: list[float] | None) -> None:
    logits, labels = drawn()
    ours, theirs = logits.clone().requires_grad_(), logits.clone().requires_grad_()

    binary, two = BinaryCrossEntropy(weights).double()(ours, labels), CrossEntropy(weights).double()(theirs, labels)
    binary.backward()
    two.backward()

    torch.testing.assert_close(binary, two)
    torch.testing.assert_close(ours.grad, theirs.grad)


def test_focal_loss_of_two_classes_is_smps_binary_form() -> None:
    logits, labels = drawn()
    theirs = smp.losses.FocalLoss("binary", gamma=2.0, ignore_index=IGNORE_LABEL)

    loss = Focal()(logits, labels)

    torch.testing.assert_close(loss, theirs(logits[:, 1] - logits[:, 0], labels))


@pytest.mark.parametrize(("gamma", "weights"), [(0.0, None), (0.5, [1.0, 3.0, 0.5]), (2.0, None), (3.5, [0.0, 1, 2])])
def test_focal_loss_is_its_definition(gamma: float, weights: list[float] | None) -> None:
    logits, labels = drawn(3)
    probs, kept = pixel_by_pixel(logits, labels)
    p = probs[range(len(kept)), kept]
    weight = np.array(weights or [1.0] * 3)[kept]

    loss = Focal(gamma, weights).double()(logits, labels)

    assert loss.item() == pytest.approx((-((1 - p) ** gamma) * np.log(p) * weight).sum() / weight.sum())


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0])
def test_focal_loss_has_a_gradient_where_a_pixel_is_right_beyond_doubt(gamma: float) -> None:
    logits = torch.tensor([[200.0, -200.0], [-200.0, 200.0]]).reshape(1, 2, 1, 2).requires_grad_()

    Focal(gamma)(logits, torch.tensor([[[0, 1]]])).backward()

    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()


@pytest.mark.parametrize("num_classes", [2, 3])
def test_dice_and_jaccard_are_their_definitions(num_classes: int) -> None:
    logits, labels = drawn(num_classes)
    probs, kept = pixel_by_pixel(logits, labels)
    truth = np.eye(num_classes)[kept]
    both, either = (probs * truth).sum(0), probs.sum(0) + truth.sum(0)
    weights = np.array([1.0, 3.0, 0.5][:num_classes])

    dice, jaccard = Dice()(logits, labels), Jaccard()(logits, labels)
    weighted = Dice(class_weights=weights.tolist())(logits, labels)
    of_one = Jaccard([1], smooth=1.0)(logits, labels)

    assert dice.item() == pytest.approx((1 - 2 * both / either).mean())
    assert jaccard.item() == pytest.approx((1 - both / (either - both)).mean())
    assert weighted.item() == pytest.approx(((1 - 2 * both / either) * weights).sum() / weights.sum())
    assert of_one.item() == pytest.approx(1 - (both[1] + 1) / (either[1] - both[1] + 1))


@pytest.mark.parametrize("num_classes", [2, 3])
def test_lovasz_is_the_extension_of_the_jaccard_set_function(num_classes: int) -> None:
    logits, labels = drawn(num_classes)
    probs, kept = pixel_by_pixel(logits, labels)

    loss = Lovasz()(logits, labels)

    parts = []
    for which in range(num_classes):
        truth = kept == which
        errors = np.abs(truth - probs[:, which])
        wrong: set[int] = set()
        before, extension = 0.0, 0.0
        for pixel in np.argsort(-errors):
            wrong.add(int(pixel))
            found = sum(truth[i] and i not in wrong for i in range(len(kept)))
            union = sum(truth[i] or i in wrong for i in range(len(kept)))
            extension += errors[pixel] * (1 - found / union - before)
            before = 1 - found / union
        parts.append(extension)
    assert loss.item() == pytest.approx(np.mean(parts))


def test_a_sum_adds_each_loss_times_its_weight() -> None:
    logits, labels = drawn()

    loss = WeightedSum([CrossEntropy(), Dice()], [0.25, 2.0])(logits, labels)

    torch.testing.assert_close(loss, 0.25 * CrossEntropy()(logits, labels) + 2 * Dice()(logits, labels))


# Pixels that do not count


@each_loss
def test_ignored_pixels_are_as_if_they_were_not_there(make: Callable[[], nn.Module]) -> None:
    logits, labels = drawn()
    counts = labels != IGNORE_LABEL
    alone = logits.movedim(1, -1)[counts].T.reshape(1, 2, 1, -1), labels[counts].reshape(1, 1, -1)
    loss = make().double()

    whole, hidden = logits.clone().requires_grad_(), torch.where(counts[:, None], logits, 50.0)
    value = loss(whole, labels)
    value.backward()

    torch.testing.assert_close(value.detach(), loss(*alone), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(value.detach(), loss(hidden, labels), rtol=1e-6, atol=1e-6)
    assert whole.grad is not None
    assert not whole.grad.movedim(1, -1)[~counts].any()
    assert whole.grad.movedim(1, -1)[counts].any()


@pytest.mark.parametrize("make", [make for name, make in LOSSES.items() if name not in ("Lovasz", "sum")])
def test_a_loss_asks_the_device_for_nothing(make: Callable[[], nn.Module]) -> None:
    # Tensors without values: whoever asks for one, or for how many are not 0, gets an error.
    with FakeTensorMode(), torch.device("cuda"):
        loss = make().to("cuda")

        value = loss(torch.randn(2, 2, 6, 9), torch.zeros(2, 6, 9, dtype=torch.long))

    assert (value.device.type, value.shape) == ("cuda", ())


@pytest.mark.parametrize("name", ["Dice", "Dice of buildings", "Jaccard"])
def test_no_number_where_nothing_counts_does_no_harm(name: str) -> None:
    logits, labels = drawn()
    expected = LOSSES[name]().double()(logits, labels)
    ours = torch.where((labels != IGNORE_LABEL)[:, None], logits, torch.nan).requires_grad_()

    loss = LOSSES[name]().double()(ours, labels)
    loss.backward()

    torch.testing.assert_close(loss.detach(), expected)
    assert ours.grad is not None
    assert torch.isfinite(ours.grad).all()


@each_loss
def test_where_nothing_counts_the_loss_is_zero_and_so_is_its_gradient(make: Callable[[], nn.Module]) -> None:
    logits, labels = drawn(ignored=1.1)
    logits.requires_grad_()

    loss = make().double()(logits, labels)
    loss.backward()

    assert loss == 0
    assert logits.grad is not None
    assert not logits.grad.any()


@each_loss
@pytest.mark.parametrize("label", [0, 1])
def test_one_class_alone_gives_a_finite_loss_that_falls_as_the_network_gets_it_right(
    make: Callable[[], nn.Module], label: int
) -> None:
    labels = torch.full((2, 6, 9), label)
    right = torch.zeros(2, 2, 6, 9)
    right[:, label] = 3.0

    wrong, good = make()(-right, labels), make()(right, labels)

    assert torch.isfinite(wrong)
    assert good <= wrong
    absent = make is LOSSES["Dice of buildings"] and label == 0
    assert absent or good < wrong


@each_loss
def test_a_loss_is_no_part_of_a_checkpoint(make: Callable[[], nn.Module]) -> None:
    task = SegmentationTask(BatchNorm, INRIA, partial(UNet, depth=1, width=4), loss=make())

    assert (
        task.state_dict().keys()
        == SegmentationTask(BatchNorm, INRIA, partial(UNet, depth=1, width=4)).state_dict().keys()
    )


def test_a_class_without_weight_teaches_nothing() -> None:
    logits, _ = drawn()
    labels = torch.zeros(2, 6, 9, dtype=torch.long)

    for loss in (CrossEntropy([0.0, 1.0]), BinaryCrossEntropy([0.0, 1.0]), Focal(class_weights=[0.0, 1.0])):
        assert loss.double()(logits, labels) == 0


# What is refused


class Wrong(nn.Module):
    """A loss that gives a map."""

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the surprise of every pixel."""
        return cross_entropy(logits, labels, ignore_index=IGNORE_LABEL, reduction="none")


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (nn.CrossEntropyLoss(ignore_index=IGNORE_LABEL), "nan where no pixel counts"),
        (nn.CrossEntropyLoss(), "fails on logits"),
        (nn.CrossEntropyLoss(weight=torch.ones(2), ignore_index=IGNORE_LABEL), "a checkpoint would have to keep"),
        (smp.losses.FocalLoss("multiclass", ignore_index=IGNORE_LABEL), "nan where no pixel counts"),
        (smp.losses.FocalLoss("multiclass"), "looks at pixels labelled 255"),
        (smp.losses.LovaszLoss("multiclass", ignore_index=IGNORE_LABEL), "one number for a batch"),
        (smp.losses.DiceLoss("multiclass"), "fails on logits"),
        (Wrong(), "one number for a batch"),
        (CrossEntropy([1.0, 2.0, 3.0]), "each of 2 classes, got 3"),
        (Dice(class_weights=[1.0]), "each of 2 classes, got 1"),
        (Dice(classes=[2]), "fails on logits"),
        (WeightedSum([Wrong()]), "one number for a batch"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else None,
)
def test_a_loss_that_cannot_work_is_refused_before_the_training(loss: nn.Module, message: str) -> None:
    with pytest.raises(InvalidConfigError, match=message) as caught:
        SegmentationTask(BatchNorm, INRIA, partial(UNet, depth=1, width=4), loss=loss)

    assert "\n" not in str(caught.value)


def test_the_binary_form_is_refused_for_three_classes() -> None:
    with pytest.raises(InvalidConfigError, match="for two classes, got 3"):
        check_loss(BinaryCrossEntropy(), 3)


@pytest.mark.parametrize("make", [smp.losses.DiceLoss, smp.losses.JaccardLoss])
def test_losses_of_smp_that_keep_to_the_rule_are_let_through(make: Callable[..., nn.Module]) -> None:
    check_loss(make("multiclass", ignore_index=IGNORE_LABEL), 3)


@pytest.mark.parametrize(
    "make",
    [
        partial(CrossEntropy, [-1.0, 1.0]),
        partial(BinaryCrossEntropy, [0.0, 0.0]),
        partial(Focal, -1.0),
        partial(Dice, []),
        partial(Jaccard, [-1]),
        partial(Jaccard, [1], [1.0, 0.0]),
        partial(WeightedSum, []),
        partial(WeightedSum, [Dice()], [1.0, 2.0]),
    ],
)
def test_settings_out_of_range_are_refused(make: Callable[[], nn.Module]) -> None:
    with pytest.raises(InvalidConfigError):
        make()


def test_the_loss_is_taken_in_float32_whatever_autocast_says(monkeypatch: pytest.MonkeyPatch) -> None:
    task = SegmentationTask(BatchNorm, INRIA, partial(UNet, depth=1, width=4), loss=Dice())
    monkeypatch.setattr(task, "log", lambda *args, **options: None)
    batch = {"image": torch.rand(2, 3, 32, 32), "mask": torch.ones(2, 32, 32, dtype=torch.uint8)}

    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = task.training_step(batch, 0)

    assert loss.dtype == torch.float32


# A single logit


class SingleLogit(nn.Module):
    """A network that gives the difference of the logits alone."""

    def __init__(self, network: UNet) -> None:
        super().__init__()
        self.network = network
        first, second = network.head.weight.detach()
        head = nn.Conv2d(network.head.in_channels, 1, 1)
        head.load_state_dict({"weight": (second - first)[None], "bias": torch.zeros(1)})
        self.network.head = head

    def forward(self, image: Tensor) -> Tensor:
        """Return (N, H, W)."""
        return self.network(image)[:, 0]


@pytest.mark.parametrize("make", [torch.optim.Adam, partial(torch.optim.SGD, momentum=0.9)], ids=["Adam", "SGD"])
def test_a_difference_learns_as_a_single_logit_would(make: Callable[..., torch.optim.Optimizer]) -> None:
    def network() -> UNet:
        torch.manual_seed(0)
        made = UNet(3, 2, norm=partial(GroupNorm, group_size=2), depth=1, width=4)
        assert made.head.bias is not None
        made.head.bias.data.zero_()
        return made.double()

    single, double, plain = SingleLogit(network()).double(), network(), network()
    silence_first_logit(double, 2)
    random = torch.Generator().manual_seed(1)
    image = torch.rand(2, 3, 16, 24, generator=random, dtype=torch.float64)
    labels = torch.randint(0, 2, (2, 16, 24), generator=random)

    optimizers = [make(network.parameters(), lr=0.01) for network in (single, double, plain)]
    for _ in range(20):
        for optimizer in optimizers:
            optimizer.zero_grad()
        binary_cross_entropy_with_logits(single(image), labels.double()).backward()
        CrossEntropy()(with_first_logit_fixed(double(image)), labels).backward()
        CrossEntropy()(plain(image), labels).backward()
        for optimizer in optimizers:
            optimizer.step()

    expected = single(image)
    torch.testing.assert_close(double(image), torch.stack([torch.zeros_like(expected), expected], dim=1))
    two = plain(image)
    assert (two[:, 1] - two[:, 0] - expected).abs().max() > 1e-3


@pytest.mark.parametrize(
    "make",
    [
        partial(UNet, depth=1, width=4),
        partial(SmpNetwork, encoder="resnet18"),
        partial(SmpNetwork, arch="fpn", encoder="resnet18"),
    ],
    ids=["UNet", "smp's Unet", "smp's FPN"],
)
def test_a_silent_first_logit_leaves_the_probabilities(make: NetworkFactory) -> None:
    torch.manual_seed(0)
    network = make(3, 3, norm=BatchNorm).eval()
    image = torch.rand(1, 3, 32, 64) * 200
    before = network(image).softmax(1)

    silence_first_logit(network, 3)

    logits = network(image)
    torch.testing.assert_close(logits.softmax(1), before)
    assert logits[:, 0].abs().max() < 1e-5
    assert logits[:, 1].abs().max() > 1e-2


def test_a_network_without_a_last_convolution_is_refused() -> None:
    with pytest.raises(InvalidConfigError, match="single_logit needs a network"):
        silence_first_logit(nn.Linear(3, 2), 2)
