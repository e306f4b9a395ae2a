"""AlexNet's stand-in for tests of what happens to whole runs: the same layers' names, a thousandth of its weights."""

from __future__ import annotations

import pytest
from torch import Tensor, nn

from callbacks import LOOKS
from lightning_modules import classifier

# Nothing to look at, so quick.
UNSEEN = [f"--{key}.enabled=false" for key in LOOKS]


class SmallAlexNet(nn.Module):
    """24-pixel images to ten classes; dropout's masks betray a random number drawn elsewhere."""

    def __init__(
        self, num_classes: int = 10, image_size: int = 24, conv1_stride: int = 4, groups: int = 2, init: str = "he"
    ) -> None:
        super().__init__()
        self.image_size = image_size
        self.conv1 = nn.Conv2d(3, 8, 11, stride=4)  # (B, 8, 4, 4)
        self.conv2 = nn.Conv2d(8, 8, 3, groups=groups)  # (B, 8, 2, 2)
        self.fc7 = nn.Linear(32, 12)
        self.fc8 = nn.Linear(12, num_classes)
        self.act = nn.ReLU(inplace=True)
        self.drop = nn.Dropout(0.5)

    def embed(self, images: Tensor) -> Tensor:
        return self.drop(self.act(self.fc7(self.act(self.conv2(self.act(self.conv1(images)))).flatten(1))))

    def forward(self, images: Tensor) -> Tensor:
        return self.fc8(self.embed(images))


@pytest.fixture
def small_net(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs train SmallAlexNet: a whole one takes a second, a checkpoint some kilobytes."""
    monkeypatch.setattr(classifier, "AlexNet", SmallAlexNet)
