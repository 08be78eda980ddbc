"""What packing costs, and what reading images at random costs from files, from packs and from other formats.

    python benchmarks/pack.py --data FOLDER --work EMPTY_FOLDER [--rounds 5] [--part encoding packing loading reading]

- encoding: each image as `--short-side 256` makes it, by threads (as `unmask pack` does) and by processes.
- packing: `unmask pack`, images as they are and with --short-side 256.
- loading: batches for pretraining at 224 pixels from the folder and from these packs, in the training process.
- reading: the bytes of every image in random order, "warm" from the page cache and "cold" after the files' pages were
  dropped: what then comes from storage is counted by the kernel. ArrayRecord (pip install array_record) holds one image
  a group, uncompressed; Grain reads it so at random.

CPU seconds are of all threads and processes, the kernel's included. Rounds alternate; the medians are printed.
"""

from __future__ import annotations

import argparse
import os
import resource
import shutil
import statistics
import tarfile
import time
from collections.abc import Callable
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from unmask.config.schema import AugmentConfig, DataConfig, ModelConfig
from unmask.data.batch import Needs
from unmask.data.loader.pipeline import train_batches
from unmask.data.masking import RandomMask
from unmask.data.packs.recode import recode
from unmask.data.packs.write import pack
from unmask.data.sources import Source, open_source

Read = Callable[[int], bytes]


def cpu() -> float:
    usages = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def opened(path: Path) -> Source:
    return open_source(str(path), key="--data", labels=False)


def size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else sum(file.stat().st_size for file in path.rglob("*"))


def encode(source: Source, index: int) -> int:
    return len(recode(source.read(index), 256, 90, max_pixels=10**9))


def measure_encoding(data: Path, work: Path, rounds: int) -> None:
    source = opened(data)
    count = min(len(source), 256)
    pools: dict[str, Callable[[], Executor]] = {
        "1 thread": lambda: ThreadPoolExecutor(1),
        "2 threads": lambda: ThreadPoolExecutor(2),
        "1 process": lambda: ProcessPoolExecutor(1),
        "2 processes": lambda: ProcessPoolExecutor(2),
    }
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in pools}
    for _ in range(rounds):
        for name, make in pools.items():
            before = cpu(), time.perf_counter()
            with make() as pool:
                sum(pool.map(partial(encode, source), range(count), chunksize=8))
            times[name].append((cpu() - before[0], time.perf_counter() - before[1]))
    print(f"\n| {count} images to a short side of 256 | CPU ms/image | images/s | cores in use |\n|---|---|---|---|")
    for name, pairs in times.items():
        used, wall = (statistics.median(values) for values in zip(*pairs, strict=True))
        print(f"| {name} | {1e3 * used / count:.2f} | {count / wall:.0f} | {used / wall:.2f} |")


def measure_packing(data: Path, work: Path, rounds: int) -> None:
    count = len(opened(data))
    print("\n| packing | workers | CPU ms/image | images/s | MB | bytes of the images | index kB |")
    print("|---|---|---|---|---|---|---|")
    for short_side in (None, 256):
        for workers in (1, 2):
            pairs: list[tuple[float, float]] = []
            out = work / f"pack-{short_side}"
            for _ in range(rounds):
                shutil.rmtree(out, ignore_errors=True)
                before = cpu(), time.perf_counter()
                pack(data, out, short_side=short_side, workers=workers)
                pairs.append((cpu() - before[0], time.perf_counter() - before[1]))
            used, wall = (statistics.median(values) for values in zip(*pairs, strict=True))
            share, index = size(out) / size(data), size(out / "index.parquet")
            name = "as they are" if short_side is None else f"--short-side {short_side}"
            print(
                f"| {name} | {workers} | {1e3 * used / count:.2f} | {count / wall:.0f} | {size(out) / 1e6:.1f} | "
                f"{share:.1%} | {index / 1e3:.0f} |",
                flush=True,
            )


def measure_loading(data: Path, work: Path, rounds: int) -> None:
    pack(data, work / "whole")
    pack(data, work / "small", short_side=256)
    sources = {"files": data, "pack": work / "whole", "pack --short-side 256": work / "small"}
    times: dict[str, list[float]] = {name: [] for name in sources}
    for _ in range(rounds):
        for name, path in sources.items():
            batches = train_batches(
                opened(path),
                needs=Needs((RandomMask(196, 49),)),
                model=ModelConfig(),
                data=DataConfig(workers=0),
                augment=AugmentConfig(),
                seed=0,
                batch_size=64,
                accumulate=1,
                start_step=0,
                stop_step=8,
            )
            before = cpu()
            count = sum(len(batch.images) for step in batches for batch in step)
            times[name].append(1e3 * (cpu() - before) / count)
    print("\n| loading from | CPU ms/image |\n|---|---|")
    for name, values in times.items():
        print(f"| {name} | {statistics.median(values):.2f} |")


def make_formats(data: Path, work: Path) -> dict[str, tuple[Path, Callable[[Path], Read]]]:
    """A path and how to open it, by name of the format."""
    files = opened(data)
    pack(data, work / "pack")
    with tarfile.open(work / "plain.tar", "w", format=tarfile.USTAR_FORMAT) as tar:
        for index in range(len(files)):
            tar.add(data / files.name(index), files.name(index))

    def read(path: Path) -> Read:
        source = opened(path)

        def image(index: int) -> bytes:
            stored = source.read(index)
            assert isinstance(stored, bytes)
            return stored

        return image

    formats = {"files": (data, read), "pack": (work / "pack", read), "plain tar": (work / "plain.tar", read)}
    try:
        from array_record.python.array_record_data_source import ArrayRecordDataSource
        from array_record.python.array_record_module import ArrayRecordWriter
    except ImportError:
        print("array_record is not installed")
        return formats
    path = work / "images.array_record"
    writer: Any = ArrayRecordWriter(str(path), "group_size:1,uncompressed")
    for index in range(len(files)):
        writer.write(files.read(index))
    writer.close()

    def read_records(path: Path) -> Read:
        records: Any = ArrayRecordDataSource([str(path)])
        return records.__getitem__

    return formats | {"ArrayRecord": (path, read_records)}


def drop(path: Path) -> None:
    """From the page cache."""
    for file in [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]:
        descriptor = os.open(file, os.O_RDONLY)
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def fetched() -> int:
    """Bytes that this process had brought from storage."""
    lines = Path("/proc/self/io").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("read_bytes"))


def measure_reading(data: Path, work: Path, rounds: int) -> None:
    formats = make_formats(data, work)
    count = len(opened(data))
    order = np.random.default_rng(0).permutation(count).tolist()
    total = size(data)
    results: dict[str, dict[str, list[float]]] = {name: {} for name in formats}
    for number in range(rounds + 1):
        for name, (path, open_format) in formats.items():
            for state in ("cold", "warm"):
                if state == "cold":
                    drop(path)
                before = cpu(), time.perf_counter()
                read = open_format(path)
                opening = cpu() - before[0], time.perf_counter() - before[1]
                before = cpu(), time.perf_counter(), fetched()
                read_bytes = sum(len(read(index)) for index in order)
                spent = cpu() - before[0], time.perf_counter() - before[1], fetched() - before[2]
                assert read_bytes == total, f"{name}: {read_bytes} bytes, not {total}"
                if number:  # the first builds indexes and imports
                    found = zip(("opening", "opening wall", "cpu", "wall", "fetched"), (*opening, *spent), strict=True)
                    for key, value in found:
                        results[name].setdefault(f"{state} {key}", []).append(value)
    print(
        "\n| reading | on disk MB | opening, CPU ms | warm, CPU us/image | warm us/image | warm images/s | "
        "cold, CPU us/image | cold us/image | cold, bytes fetched |\n|---|---|---|---|---|---|---|---|---|"
    )
    for name, (path, _) in formats.items():
        median = {key: statistics.median(values) for key, values in results[name].items()}
        times = {key: 1e6 * value / count for key, value in median.items()}
        print(
            f"| {name} | {size(path) / 1e6:.2f} | {1e3 * median['warm opening']:.1f} | {times['warm cpu']:.0f} | "
            f"{times['warm wall']:.0f} | {count / median['warm wall']:,.0f} | {times['cold cpu']:.0f} | "
            f"{times['cold wall']:.0f} | {median['cold fetched'] / total:.0%} |"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of photographs")
    parser.add_argument("--work", type=Path, required=True, help="made here, and removed at the end")
    parser.add_argument("--rounds", type=int, default=5)
    parts = {
        "encoding": measure_encoding,
        "packing": measure_packing,
        "loading": measure_loading,
        "reading": measure_reading,
    }
    parser.add_argument("--part", nargs="+", choices=list(parts), default=list(parts))
    args = parser.parse_args()
    args.work.mkdir(parents=True)
    os.environ["UNMASK_CACHE"] = str(args.work / "cache")
    try:
        for part in args.part:
            parts[part](args.data, args.work, args.rounds)
    finally:
        shutil.rmtree(args.work)


if __name__ == "__main__":
    main()
