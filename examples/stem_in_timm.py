"""A classifier behind convolutions (`few-labels`, `small-finetune`) as timm's VisionTransformer, without unmask.

    unmask convert runs/taught taught.pth --to facebook
    python examples/stem_in_timm.py taught.pth photos/*.jpg

timm has no such model by name, but its Vision Transformer takes whatever makes the tokens as `embed_layer`. `Stem` is
that, in PyTorch alone; what `load_classifier` returns gives the logits that unmask gives, within 1e-5, and goes on
learning like any module. Images are cropped by timm here, so probabilities differ in the third decimal place.
"""

from __future__ import annotations

import json
import sys
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from timm.data import create_transform
from timm.models import VisionTransformer
from torch import Tensor, nn


class Convolution(nn.Conv2d):
    """3 x 3, with weights standardised to mean 0 and variance 1 / fan-in."""

    def __init__(self, fan_in: int, fan_out: int, stride: int = 1) -> None:
        super().__init__(fan_in, fan_out, 3, stride, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        flat = self.weight.flatten(1)
        flat = flat - flat.mean(1, keepdim=True)
        flat = flat / (flat.square().sum(1, keepdim=True) + 1e-5).sqrt()
        return F.conv2d(x, flat.view_as(self.weight), None, self.stride, self.padding)


class Layer(nn.Module):
    """Halves an image: the first by its stride, the others by the largest of each 2 x 2 places."""

    def __init__(self, fan_in: int, fan_out: int, eps: float, *, first: bool) -> None:
        super().__init__()
        self.conv1 = Convolution(fan_in, fan_out, stride=2 if first else 1)
        self.norm1 = nn.GroupNorm(1, fan_out, eps)
        self.conv2 = None if first else Convolution(fan_out, fan_out)
        self.norm2 = None if first else nn.GroupNorm(1, fan_out, eps)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(x)
        if self.conv2 is None or self.norm2 is None:
            return self.norm1(x).relu()
        x = self.norm1(F.max_pool2d(x, 2)).relu()
        return self.norm2(self.conv2(x)).relu()


class Stem(nn.Module):
    """Images (B, C, H, W) to tokens (B, L, D); each layer halves them."""

    def __init__(
        self, img_size: Any, patch_size: int, in_chans: int, embed_dim: int, *, first: int, eps: float, **_: Any
    ):
        super().__init__()
        self.num_patches = img_size[0] * img_size[1] // patch_size**2
        inner = [first << i for i in range(patch_size.bit_length() - 2)]
        pairs = list(pairwise((in_chans, *inner, embed_dim)))
        self.stem = nn.Sequential(*(Layer(*pair, eps, first=i == 0) for i, pair in enumerate(pairs)))

    def forward(self, x: Tensor) -> Tensor:
        return self.stem(x).flatten(2).transpose(1, 2)


def load_classifier(path: str) -> tuple[VisionTransformer, dict[str, Any]]:
    """The network, ready to be asked, and what the file tells of it: `model`, `data`, `class_names`."""
    file = torch.load(path, weights_only=True)
    told = json.loads(file["unmask"])
    shape = told["model"]
    network = VisionTransformer(
        img_size=shape["image_size"],
        patch_size=shape["patch_size"],
        in_chans=shape["channels"],
        num_classes=shape["num_classes"],
        global_pool="avg" if shape["pool"] == "mean" else "token",
        embed_dim=shape["width"],
        depth=shape["depth"],
        num_heads=shape["heads"],
        mlp_ratio=shape["mlp_ratio"],
        init_values=shape["layer_scale"],
        class_token=shape["cls_token"],
        embed_layer=lambda **each: Stem(**each, first=shape["patch_stem"], eps=shape["norm_eps"]),
    )
    network.load_state_dict(file["model"])
    return network.eval(), told


def main() -> None:
    from PIL import Image

    network, told = load_classifier(sys.argv[1])
    transform = create_transform(
        (told["model"]["channels"], *told["model"]["image_size"]),
        interpolation=told["data"]["interpolation"],
        crop_pct=told["data"]["eval_crop"],
        mean=told["data"]["mean"],
        std=told["data"]["std"],
    )
    for path in sys.argv[2:]:
        image = transform(Image.open(path).convert("RGB" if told["model"]["channels"] == 3 else "L"))
        with torch.no_grad():
            probabilities = network(image[None]).softmax(1)[0]
        best = int(probabilities.argmax())
        print(f"{path}\t{told['class_names'][best]}\t{float(probabilities[best]):.3f}")


if __name__ == "__main__":
    main()
