"""Images per second from JPEG files to logits: ours, and timm and transformers with Pillow and a DataLoader.

    python benchmarks/inference.py --data FOLDER --recipe finetune-vit-small --precision fp32,bf16 --images 256

All decode, resize the short side to 256 (bicubic), crop 224 and compute in batches of 64; the head reads the cls token,
as transformers' does. The others have our weights, and their bf16 is the whole model in bf16. Rounds take all in turn;
CPU seconds include those of threads that decode. The ratio is to the faster of the others in the same precision and
round, with its quartiles. For bf16: the cosine of its logits to fp32's, and how often the likeliest class is the same.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
import transformers
from numpy.typing import NDArray
from PIL import Image

from unmask.config.load import load_config
from unmask.config.schema import Config
from unmask.data.sources import Source, open_source
from unmask.data.sources.subset import SpansSource
from unmask.engines.base import Tensors
from unmask.engines.torch_engine.engine import DTYPES
from unmask.evaluate.inference import Model
from unmask.interchange.stored_model import OF_DATA, StoredModel
from unmask.interchange.transformers import write_transformers
from unmask.objectives.base import create_objective

BATCH = 64


class Photos:
    def __init__(self, paths: list[Path], transform: Callable[[Any], Any]) -> None:
        self.paths, self.transform = paths, transform

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Any:
        return self.transform(Image.open(self.paths[index]).convert("RGB"))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", required=True)
    parser.add_argument("--recipe", default="finetune-vit-small")
    parser.add_argument("--precision", default="fp32,bf16")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    folder = open_source(options.data, key="--data", labels=False)
    source = SpansSource(folder, [range(min(options.images, len(folder)))])
    paths = [Path(options.data) / folder.name(index) for index in range(len(source))]
    settings = ["model.num_classes=1000", "model.pool=cls", f"device={options.device}"]
    config = load_config(options.recipe, settings)
    # Not as drawn: the head of a fresh network says next to nothing.
    weights = {name: w if w.ndim < 2 else 3 * w for name, w in create_objective(config).initial_weights(0).items()}
    contenders: dict[tuple[str, str], Callable[[], NDArray[np.float32]]] = {}
    for precision in options.precision.split(","):
        set_to = config.model_copy(update={"train": config.train.model_copy(update={"precision": precision})})
        contenders["unmask", precision] = ours(Model(set_to, weights, None, BATCH), source)
        for name, network in (("timm", of_timm(config, weights)), ("transformers", of_transformers(config, weights))):
            contenders[name, precision] = theirs(network, paths, options.device, DTYPES[precision])
    times: dict[tuple[str, str], list[tuple[float, float]]] = {name: [] for name in contenders}
    found: dict[tuple[str, str], NDArray[np.float32]] = {}
    for _ in range(1 + options.rounds):
        for name, run in contenders.items():
            wall, cpu = time.perf_counter(), time.process_time()
            found[name] = run()
            times[name].append((time.perf_counter() - wall, time.process_time() - cpu))
    print(
        "| | images/s | images/CPU s | of the faster other | cosine to fp32 | same class |\n|---|---|---|---|---|---|"
    )
    for side, precision in contenders:
        wall, cpu = (statistics.median(each[i] for each in times[side, precision][1:]) for i in range(2))
        rounds = zip(*(times[each, precision][1:] for each in ("timm", "transformers", side)), strict=True)
        ratios = [min(timm[1], transformers[1]) / mine[1] for timm, transformers, mine in rounds]
        low, ratio, high = np.quantile(ratios, (0.25, 0.5, 0.75))
        a, b = found[side, precision], found.get(("unmask", "fp32"), found[side, precision])
        cosine = ((a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)).min()
        same = (a.argmax(1) == b.argmax(1)).mean()
        rates = f"{len(paths) / wall:.1f} | {len(paths) / cpu:.1f} | {ratio:.2f} ({low:.2f} to {high:.2f})"
        print(f"| {side} {precision} | {rates} | {cosine:.5f} | {same:.1%} |")


def ours(model: Model, source: Source) -> Callable[[], NDArray[np.float32]]:
    return lambda: np.concatenate([model.engine.output("logits", batch) for batch in model.batches(source)])


def of_timm(config: Config, weights: Tensors) -> torch.nn.Module:
    model = config.model
    network = timm.models.VisionTransformer(
        model.image_size, model.patch_size, embed_dim=model.width, depth=model.depth, num_heads=model.heads
    )
    network.load_state_dict({name: torch.from_numpy(w) for name, w in weights.items()})
    return network


def of_transformers(config: Config, weights: Tensors) -> torch.nn.Module:
    images = {name: getattr(config.data, name) for name in OF_DATA}
    stored = StoredModel(weights, config.model.model_dump(), None, "unmask", data=images)
    with tempfile.TemporaryDirectory(prefix="unmask-") as folder:
        write_transformers(Path(folder) / "model", stored)
        network = transformers.ViTForImageClassification.from_pretrained(Path(folder) / "model", dtype=torch.float32)
    return Logits(network)


class Logits(torch.nn.Module):
    def __init__(self, network: torch.nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.network(pixel_values=images).logits


def theirs(
    network: torch.nn.Module, paths: list[Path], device: str, dtype: torch.dtype
) -> Callable[[], NDArray[np.float32]]:
    network = network.eval().to(device, dtype)
    transform = timm.data.create_transform(224, interpolation="bicubic", crop_pct=224 / 256)
    loader = torch.utils.data.DataLoader(Photos(paths, transform), BATCH)

    @torch.inference_mode()
    def run() -> NDArray[np.float32]:
        return np.concatenate([network(images.to(device, dtype)).float().cpu().numpy() for images in loader])

    return run


if __name__ == "__main__":
    main()
