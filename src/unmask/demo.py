"""The main job on an embedded default: what pretraining is worth when there are a hundred labels."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from unmask.api import run
from unmask.config.load import load_config
from unmask.config.schema import Config
from unmask.data.sources.files import is_remote
from unmask.errors import ConfigError
from unmask.evaluate.inference import load
from unmask.report.progress import say, table

HELD_OUT = "bundled:mnist5k/val"


def run_demo(settings: Sequence[str] = ()) -> dict[str, float]:
    """Pretrain on 4,000 digits without labels, fine-tune on 100 labels, train from scratch on the same, compare.

    `settings` are `key=value` and apply to all three runs; `output` is the folder for them (default runs/demo).
    Returns the accuracy on 1,000 held-out digits of `pretrained` and `scratch`. The same call again resumes.
    """
    began = time.monotonic()
    # The same from both starts, for as long: no trial of whether it pays.
    pretraining, training = (
        load_config("demo-mae", settings),
        load_config("demo-finetune", ["objective.head=drawn", *settings]),
    )
    if is_remote(pretraining.output or ""):
        raise ConfigError(f"output={pretraining.output}: the demo needs a folder here")
    folder = Path(pretraining.output or "runs/demo")

    def train(config: Config, name: str, init: Path | None = None) -> None:
        output = folder / name
        run(config.model_copy(update={"output": str(output), "init": init and str(init)}), output)

    say("1/3  Pretrain a masked autoencoder on 4,000 digits, without labels")
    train(pretraining, "pretrain")
    say("\n2/3  Fine-tune it on 100 labels")
    train(training, "finetune", init=folder / "pretrain")
    say("\n3/3  Train the same network from scratch on the same 100 labels, for as long")
    train(training, "scratch")

    accuracy = {
        name: load(folder / path, engine=training.engine, device=training.device).evaluate(HELD_OUT)["top1"]
        for name, path in (("pretrained", "finetune"), ("scratch", "scratch"))
    }
    say(f"\nAccuracy on 1,000 held-out digits, with 100 labels ({time.monotonic() - began:.0f} s in all)")
    rows = [
        ["from scratch", f"{accuracy['scratch']:.1%}"],
        ["pretrained", f"{accuracy['pretrained']:.1%}"],
        ["gain", f"{100 * (accuracy['pretrained'] - accuracy['scratch']):+.1f} points"],
    ]
    table(rows, ["", "accuracy"])
    say(f"\nRun folder: {folder}")
    say(f"  loss curves      {folder}/{{pretrain,finetune,scratch}}/curves.png")
    say(f"  reconstructions  {folder / 'pretrain' / 'reconstruction.png'}")
    return accuracy
