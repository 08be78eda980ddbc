"""Pages for people: report, serve."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

from unmask.cli import kinds, shared
from unmask.cli.shared import Commands


def _add_report(commands: Commands) -> None:
    sub = commands.add("report", report, "write a page about runs: curves, classes, mistakes, a map of the images")
    sub.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="run folders; several share their charts")
    shared.add_loading(sub)
    sub.add_argument(
        "--images",
        type=kinds.number,
        default=10_000,
        metavar="N",
        help="most images to look at, spread over data.val, else data.train; 0: curves alone (default 10000)",
    )
    sub.add_argument(
        "--out",
        type=kinds.place,
        metavar="FILE.html",
        help="one file, for any browser (default: report.html in the run)",
    )


def report(options: Namespace) -> None:
    from unmask.overview import write_report

    write_report(
        options.runs,
        options.out,
        images=options.images,
        **shared.loading(options),
    )


def _add_serve(commands: Commands) -> None:
    sub = commands.add("serve", serve, "a page and an API where images are dropped, masked and answered about")
    shared.add_model(sub)
    sub.add_argument(
        "--images", metavar="FOLDER", help="find neighbours among these: anything that data.train may name"
    )
    sub.add_argument(
        "--most", type=kinds.count, default=10_000, metavar="N", help="of them, spread over all (default 10000)"
    )
    sub.add_argument("--host", default="127.0.0.1", metavar="ADDRESS", help="default 127.0.0.1: this machine alone")
    sub.add_argument("--port", type=kinds.port, default=8000, metavar="N", help="default 8000; 0: any that is free")


def serve(options: Namespace) -> None:
    from unmask.serve import serve as answer

    answer(
        options.model,
        host=options.host,
        port=options.port,
        images=options.images,
        most=options.most,
        **shared.loading(options),
    )


COMMANDS = (_add_report, _add_serve)
