"""The pretrained network as the backbone of torchvision's Faster R-CNN: what a detector of your own begins with.

The network's patches are one map of features; the pyramid of ViTDet (Li et al. 2022) makes four of it by convolutions
that enlarge or halve it. `detector(network, classes)` is trained and asked as any detector of torchvision:

    network = unmask.load("runs/mae").module
    model = detector(network, classes=2)  # the background counts as one
    losses = model(images, targets)

Images must have the model's size, as its positions are learnt for that. For large images, windowed attention and other
tricks of the paper, take detectron2's ViTDet, which loads `unmask convert runs/mae mae.pth --to facebook`.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.ops import MultiScaleRoIAlign


class Pyramid(nn.Module):
    """Normalised images (B, C, H, W) to maps of 4, 2, 1 and 1/2 times the patches' resolution."""

    def __init__(self, network: Any, out_channels: int = 64) -> None:
        super().__init__()
        self.network, self.out_channels = network, out_channels
        width = network.pos_embed.shape[-1]
        self.scales = nn.ModuleList([
            nn.Sequential(nn.ConvTranspose2d(width, width // 2, 2, 2), nn.GELU(),
                          nn.ConvTranspose2d(width // 2, out_channels, 2, 2)),
            nn.ConvTranspose2d(width, out_channels, 2, 2),
            nn.Conv2d(width, out_channels, 1),
            nn.Sequential(nn.MaxPool2d(2), nn.Conv2d(width, out_channels, 1)),
        ])  # fmt: skip

    def forward(self, images: Tensor) -> OrderedDict[str, Tensor]:
        (patches,) = self.network.get_intermediate_layers(images, n=1, reshape=True)  # (B, width, h, w)
        return OrderedDict((str(level), scale(patches)) for level, scale in enumerate(self.scales))


def detector(network: Any, classes: int, *, image_size: int, mean: list[float], std: list[float]) -> FasterRCNN:
    """A detector of `classes`, the background among them, for images of 0 to 1 and the network's own size."""
    sizes = tuple((image_size // 16 * 2**level,) for level in range(4))
    return FasterRCNN(
        Pyramid(network),
        num_classes=classes,
        min_size=image_size,
        max_size=image_size,
        image_mean=mean,
        image_std=std,
        rpn_anchor_generator=AnchorGenerator(sizes, ((0.5, 1.0, 2.0),) * 4),
        box_roi_pool=MultiScaleRoIAlign(["0", "1", "2", "3"], output_size=7, sampling_ratio=2),
    )


if __name__ == "__main__":
    import sys

    import unmask

    network = unmask.load(sys.argv[1]).module
    print(sum(weight.numel() for weight in Pyramid(network).parameters()), "weights in the backbone")
    print(torch.__version__)
