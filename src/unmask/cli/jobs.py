"""Jobs for clusters: launch."""

from __future__ import annotations

import sys
from argparse import Namespace

from unmask.cli import kinds
from unmask.cli.shared import Commands


def _add_launch(commands: Commands) -> None:
    sub = commands.add(
        "launch", launch, "print the job that trains a recipe on Slurm, SkyPilot, Kubernetes or ModelArts"
    )
    sub.add_argument(
        "platform", metavar="PLATFORM", help="slurm, sky, kubernetes or modelarts; may be left out of a check"
    )
    sub.add_recipe("of `unmask pretrain` or `unmask finetune`", optional=True)
    sub.add_settings("as there; output is needed")
    sub.add_argument(
        "--size",
        type=kinds.size,
        default=(1, 1),
        metavar="NODESxCARDS",
        help="such as 16x8: 16 machines with 8 cards each, a process for each card (default 1x1)",
    )
    sub.add_argument(
        "--check",
        type=kinds.size,
        metavar="NODESxCARDS",
        help="plan a step of that size first, without a cluster: memory of a card, bytes exchanged, and a model of its "
        "time up to 1,024 cards; what does not fit is refused",
    )
    sub.add_argument(
        "--card", choices=("h100", "a100", "ascend-910b"), help="of --check (default h100; ascend-910b for mindspore)"
    )
    sub.add_argument(
        "--mfu",
        type=kinds.share,
        default=0.4,
        metavar="SHARE",
        help="of the card's peak that a step reaches (default 0.4)",
    )
    sub.add_argument("--out", type=kinds.place, metavar="FILE", help="write the job there (default: on the screen)")
    sub.add_argument("--submit", action="store_true", help="have sbatch, sky or kubectl take the job")
    sub.add_argument("--partition", metavar="NAME", help="slurm: default the cluster's")
    sub.add_argument("--time", metavar="TIME", help="slurm: after which the job goes on in another, such as 12:00:00")
    sub.add_argument("--accelerator", metavar="NAME", help="sky: such as H100")
    sub.add_argument("--image", metavar="NAME", help="kubernetes, modelarts: a container image with unmask in it")
    sub.add_argument("--volume", metavar="CLAIM:PATH", help="kubernetes: a claim, and where the job sees its files")
    sub.add_argument("--flavor", metavar="ID", help="modelarts: the kind of its machines")


def launch(options: Namespace) -> None:
    from unmask.errors import ConfigError
    from unmask.launch import PLATFORMS, Options, plan, prepare, submit, submit_with, write_file, written

    words = [word for word in (options.platform, options.recipe, *options.settings) if word is not None]
    platform = words.pop(0) if words[0] in PLATFORMS else None
    if not words or (platform is None and options.check is None):
        raise ConfigError(f"name a platform and a recipe: unmask launch {'|'.join(PLATFORMS)} RECIPE KEY=VALUE …")
    nodes, cards = options.check or options.size
    if options.check is not None:
        plan(words[0], words[1:], nodes, cards, card=options.card, mfu=options.mfu)
    if platform is None:
        return
    job = prepare(words[0], words[1:], nodes, cards)
    mine = Options(**{name: getattr(options, name) for name in Options.__dataclass_fields__})
    text = written(platform, job, mine)
    if job.device != "cpu" and job.config.data.workers == 0:
        print(
            "data.workers=0: each process gets one core, which decodes its images too; set data.workers=N",
            file=sys.stderr,
        )
    if options.out is not None:
        write_file(text, options.out)
    if options.submit:
        print(submit(platform, text, options.out))
    elif options.out is None:
        print(text, end="")
    else:
        print(submit_with(platform, options.out))


COMMANDS = (_add_launch,)
