"""Time and memory to open many images: the first time, when the index is built, and the second, when it is mapped.

    python benchmarks/index.py --folder /tmp/index --count 100000 1000000 --kind tar folder

Files are tiny, since an index never reads them: the tar has 512 bytes for each, the folder none. Each opening is a
process of its own. "Resident" is what the process holds beyond what it has right after importing unmask's sources;
pages mapped from the cache are counted, though all processes share them.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path

OPEN = """
import json, sys, time
from pathlib import Path
from unmask.data.sources import open_source

def resident(key):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(key)) / 1e3

before, start, cpu = resident("VmRSS"), time.perf_counter(), time.process_time()
source = open_source(sys.argv[1], key="data.train", labels=True)
seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
item = source.read(len(source) // 2)
print(json.dumps({"images": len(source), "seconds": seconds, "cpu": cpu, "resident": resident("VmRSS") - before,
                  "total": resident("VmRSS"), "peak": resident("VmHWM")}))
"""


def names(count: int) -> Iterator[str]:
    """1,000 class folders as in ImageNet, in no order."""
    for i in range(count):
        number = i * 7_919 % count  # a prime that divides no power of ten
        yield f"n{number % 1000:08}/n{number % 1000:08}_{number}.JPEG"


def make_tar(path: Path, count: int) -> None:
    info = tarfile.TarInfo()
    info.size = 512
    with path.open("wb") as file:
        for name in names(count):
            info.name = name
            file.write(info.tobuf(tarfile.USTAR_FORMAT))
            file.write(bytes(512))
        file.write(bytes(1024))


def make_folder(path: Path, count: int) -> None:
    for number in range(1000):
        (path / f"n{number:08}").mkdir(parents=True)
    for name in names(count):
        os.close(os.open(path / name, os.O_CREAT | os.O_WRONLY))
    for folder in (path, *path.iterdir()):  # changed long ago, so that the index is trusted
        os.utime(folder, (1e9, 1e9))


def measure(path: Path, cache: Path) -> dict[str, float]:
    command = [sys.executable, "-c", OPEN, str(path)]
    start = time.perf_counter()
    environment = {**os.environ, "UNMASK_CACHE": str(cache)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return json.loads(done.stdout) | {"process": time.perf_counter() - start}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="made here, and removed at the end")
    parser.add_argument("--count", type=int, nargs="+", default=[100_000, 1_000_000])
    parser.add_argument("--kind", nargs="+", choices=["tar", "folder"], default=["tar", "folder"])
    args = parser.parse_args()
    print("| source | images | opening | seconds | of them CPU | resident MB | process MB | peak MB | process, s |")
    print("|---|---|---|---|---|---|---|---|---|")
    for kind in args.kind:
        for count in args.count:
            args.folder.mkdir(parents=True)
            path = args.folder / f"data{'.tar' if kind == 'tar' else ''}"
            (make_tar if kind == "tar" else make_folder)(path, count)
            for opening in ("first", "second"):
                got = measure(path, args.folder / "cache")
                cells = [got["seconds"], got["cpu"], got["resident"], got["total"], got["peak"], got["process"]]
                numbers = " | ".join(f"{cell:.2f}" if cell < 10 else f"{cell:.0f}" for cell in cells)
                print(f"| {kind} | {got['images']:,} | {opening} | {numbers} |", flush=True)
            shutil.rmtree(args.folder)


if __name__ == "__main__":
    main()
