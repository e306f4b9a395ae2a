"""What the paper claims about its parts, each claim with the variant of the baseline that tests it."""

from __future__ import annotations

from typing import NamedTuple

BASELINE = "baseline"
TARGET = 0.25  # Figure 1's training error
PAIR = (BASELINE, "tanh")  # Figure 1's: ReLU and tanh
SPEEDS = {"train_top1": ("train top-1", 0.01), "epochs": ("epochs to 25 %", 1.0)}  # measures of it, with their units


class Claim(NamedTuple):
    """What the paper says about a variant."""

    section: str
    text: str
    figure: str  # the paper's own, in points of ImageNet's top-1 unless it says otherwise
    sign: int  # of (variant - against) as the claim predicts it; 0 where the paper predicts none
    # What is compared. Where the claim is about training's speed: train_top1, or the epochs to 25 % training error, for
    # which train_top1 with the other sign stands in if a run never got there.
    measure: str = "test_top1"
    against: str = BASELINE  # the variant that it is held against


CLAIMS: dict[str, Claim] = {
    "no_lrn": Claim("3.3", "LRN helps", "1.4 points; CIFAR-10: 13 % → 11 % error", -1),
    "raw": Claim("2", "raw inputs: no claim against normalised ones", "-", 0),
    "raw_no_lrn": Claim("3.3", "LRN helps on raw inputs, as the paper's", "1.4 points", -1, against="raw"),
    "raw_no_lrn_slow": Claim("3.3", "the same, each at its own learning rate", "1.4 points", -1, against="raw"),
    "no_overlap": Claim("3.4", "overlapping pooling helps", "0.4 points", -1),
    "no_lighting": Claim("4.1", "PCA lighting helps", "over 1 point", -1),
    "no_augmentation": Claim("4.1", "shifts and flips prevent overfitting", "no figure", -1),
    "no_dropout": Claim("4.2", "dropout prevents overfitting", "no figure; twice the iterations", -1),
    "half_kernels": Claim("3.2", "two groups beat one of half the kernels", "1.7 points", -1),
    "no_groups": Claim("3.2", "two groups: no claim against all connected", "-", 0),
    "tanh": Claim(
        "3.1, Fig. 1", "ReLUs train faster than tanh", "25 % training error in 1/6 of the epochs", +1, "epochs"
    ),
    "without": Claim("3.3", "LRN helps cuda-convnet's network", "13 % → 11 % error", -1),
    "published_without": Claim("3.3", "the published pair", "13 % → 11 % error", -1),
    "first_with": Claim("3.3", "the pair as first published", "13 % → 11 % error", +1, against="published_without"),
    "ten_crops": Claim("4.1", "ten crops beat one at the test", "1.5 points (39.0 % → 37.5 % error)", +1),
}
NO_CLAIM = Claim("-", "-", "-", 0)
