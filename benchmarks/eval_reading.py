"""Items of a 4K benchmark per second, and the memory they take: our reader and the plain way, in a process each.

    python benchmarks/eval_reading.py                         1,000 items of 3840 x 2160 in a TSV, base64
    python benchmarks/eval_reading.py --items 100 --form parquet

"Read and prepared" means: question, options and reference of an item, its picture decoded, and resized to what a model with 4,096
image tokens of 28 x 28 px sees. The plain way goes through the file with the csv module (or pyarrow), decodes with base64 and
PIL, and resizes with PIL: one row at a time, which is as little memory as it can take. ``plain-all`` holds all rows first, as a
harness does that reads with pandas. Our reader also works out the file's SHA-256, finds every row's place, and hashes every
picture's pixels. Seconds are processor time, which others on the machine change less than the clock on the wall. Memory is VmHWM
of the process, less what it had after its imports. Opening and reading are timed apart: what opening costs is paid once a run,
also when it is resumed. The file is made once and kept in ``--folder``.
"""

from __future__ import annotations

import argparse
import base64
import csv
import io
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

WIDTH_PX, HEIGHT_PX, DIFFERENT = 3840, 2160, 20
MAX_PIXELS = 4096 * 28 * 28


def photograph(number: int) -> bytes:
    """A 4K JPEG of about a megabyte: smooth shapes and some noise."""
    rng = np.random.default_rng(number)
    small = Image.fromarray(rng.integers(0, 256, (54, 96, 3), dtype=np.uint8))
    pixels = np.asarray(small.resize((WIDTH_PX, HEIGHT_PX), Image.Resampling.BICUBIC), np.int16)
    noisy = pixels + rng.integers(-6, 7, (HEIGHT_PX, WIDTH_PX, 1), dtype=np.int16)
    stream = io.BytesIO()
    Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(stream, format="JPEG", quality=85)
    return stream.getvalue()


def make_file(folder: Path, items: int, form: str) -> Path:
    """The file with its rows, unless it is there."""
    path = folder / f"hr_{items}.{form}"
    if path.exists():
        return path
    folder.mkdir(parents=True, exist_ok=True)
    pictures = [photograph(number) for number in range(min(items, DIFFERENT))]

    def rows() -> Iterator[dict[str, object]]:
        for number in range(items):
            yield {
                "index": number, "question": f"What is in place {number}?", "A": "a cup", "B": "a bag", "C": "a hat",
                "D": "a key", "answer": "ABCD"[number % 4], "category": "single", "cycle_category": number % 4,
                # JPEG readers stop at the end mark, so that a few bytes behind it make every file a different one
                "image": pictures[number % len(pictures)] + number.to_bytes(4, "big"),
            }  # fmt: skip

    unfinished = path.with_suffix(".part")
    if form == "tsv":
        with unfinished.open("w", newline="", encoding="utf-8") as stream:
            writer = csv.DictWriter(stream, list(next(rows())), delimiter="\t", quoting=csv.QUOTE_ALL)
            writer.writeheader()
            for row in rows():
                writer.writerow({**row, "image": base64.b64encode(bytes(row["image"])).decode()})  # type: ignore[call-overload]
    else:
        write_parquet(unfinished, rows())
    unfinished.rename(path)
    return path


def write_parquet(path: Path, rows: Iterator[dict[str, object]]) -> None:
    """One row group of a hundred rows after the other, as the hub's converter writes them."""
    import pyarrow
    import pyarrow.parquet

    writer, waiting = None, []
    for row in rows:
        waiting.append({**row, "image": {"bytes": row["image"], "path": None}})
        if len(waiting) == 100:
            writer = writer or pyarrow.parquet.ParquetWriter(path, pyarrow.Table.from_pylist(waiting).schema)
            writer.write_table(pyarrow.Table.from_pylist(waiting, schema=writer.schema))
            waiting = []
    if waiting:
        writer = writer or pyarrow.parquet.ParquetWriter(path, pyarrow.Table.from_pylist(waiting).schema)
        writer.write_table(pyarrow.Table.from_pylist(waiting, schema=writer.schema))
    assert writer is not None
    writer.close()


def peak_mb() -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) / 1024
    raise RuntimeError("no VmHWM in /proc/self/status")


def prepare(image: Image.Image) -> Image.Image:
    """Resized to at most `MAX_PIXELS`, sides in multiples of 28 px, as a model's processor does."""
    scale = min(1.0, (MAX_PIXELS / (image.width * image.height)) ** 0.5)
    size = (int(image.width * scale) // 28 * 28, int(image.height * scale) // 28 * 28)
    return image.resize(size, Image.Resampling.BICUBIC)


def plain(path: Path, hold: bool) -> tuple[float, float, int]:
    """``(seconds to open, seconds to read and prepare, items)`` (processor time) with the standard library and PIL."""
    start = time.process_time()
    csv.field_size_limit(sys.maxsize)
    if path.suffix == ".tsv":
        stream = path.open(newline="", encoding="utf-8")
        rows: Iterator[dict[str, object]] = iter(csv.DictReader(stream, delimiter="\t"))
    else:
        import pyarrow.parquet

        table = pyarrow.parquet.ParquetFile(path)
        rows = (row for batch in table.iter_batches(4) for row in batch.to_pylist())
    rows = iter(list(rows)) if hold else rows
    opened = time.process_time()
    count = 0
    for row in rows:
        image = row["image"]
        data = base64.b64decode(str(image)) if path.suffix == ".tsv" else image["bytes"]  # type: ignore[index]
        count += prepare(Image.open(io.BytesIO(data)).convert("RGB")).width > 0
    return opened - start, time.process_time() - opened, count


def ours(path: Path) -> tuple[float, float, int]:
    """The same with the reader of ``foveate eval``."""
    from foveate.eval.benchmarks.registry import benchmark

    start = time.process_time()
    items, _ = benchmark("hrbench-4k").read(str(path))
    opened = time.process_time()
    count = 0
    for item in items:
        picture = item.sample.images[0]
        count += prepare(picture.rgb()).width > 0 and bool(item.sample.options) and bool(picture.key)
    return opened - start, time.process_time() - opened, count


def measured(way: str, path: Path) -> dict[str, float]:
    """One way in a process of its own."""
    code = [sys.executable, __file__, "--way", way, "--file", str(path)]
    done = subprocess.run(code, check=True, capture_output=True, text=True)
    return dict(json.loads(done.stdout))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=1000)
    parser.add_argument("--form", choices=["tsv", "parquet"], default="tsv")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "foveate_eval_reading")
    parser.add_argument("--ways", nargs="+", default=["ours", "plain"], choices=["ours", "plain", "plain-all"])
    parser.add_argument("--way", help=argparse.SUPPRESS)
    parser.add_argument("--file", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.way:
        import foveate.eval.benchmarks.registry  # noqa: F401 - both ways start from the same imports

        before = peak_mb()
        opening_s, reading_s, count = (
            ours(arguments.file) if arguments.way == "ours" else plain(arguments.file, arguments.way == "plain-all")
        )
        print(json.dumps({"opening_s": opening_s, "reading_s": reading_s, "items": count, "peak_mb": peak_mb() - before}))
        return
    path = make_file(arguments.folder, arguments.items, arguments.form)
    print(f"{arguments.items} items of {WIDTH_PX} x {HEIGHT_PX} px in {path} ({path.stat().st_size / 1e9:.2f} GB)")
    print(f"{'':10} {'opening s':>10} {'reading s':>10} {'items/s':>9} {'peak MB':>9}")
    found = {way: measured(way, path) for way in arguments.ways}
    for way, one in found.items():
        rate = one["items"] / one["reading_s"]
        print(f"{way:10} {one['opening_s']:10.2f} {one['reading_s']:10.2f} {rate:9.2f} {one['peak_mb']:9.0f}")
    if {"ours", "plain"} <= set(found):
        total = {way: one["opening_s"] + one["reading_s"] for way, one in found.items()}
        print(f"ours takes {total['ours'] / total['plain']:.2f} times as long as the plain loop, all in all")


if __name__ == "__main__":
    main()
