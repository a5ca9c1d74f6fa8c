"""Video-MME: short, medium and long videos with three questions each, shown as frames without subtitles (2405.21075)."""

from __future__ import annotations

from dataclasses import dataclass

from ...vlm.records import Sample
from ..lazy_clips import LazyClip, video_file
from ..readers import Row
from ..records import Item
from .base import TableBenchmark, categories_of, id_of, letter_of, options_of, text_of


@dataclass(kw_only=True)
class VideoBenchmark(TableBenchmark):
    """A table of questions about videos that lie beside it; `dataclasses.replace` changes how many frames are shown."""

    fps: float = 2.0
    max_frames: int = 64
    max_pixels: int | None = 768 * 28 * 28
    """Of one frame; None: as they are in the file."""

    def clip(self, row: Row, name: str) -> LazyClip:
        """The clip of a video that a row names, found now and decoded later. `RowError`."""
        return LazyClip(video_file(row, name), self.fps, self.max_frames, self.max_pixels)


def _item(row: Row, of: TableBenchmark) -> Item:
    assert isinstance(of, VideoBenchmark)
    options, name = options_of(row), row.text("videoID", "video", "video_path")
    sample = Sample(
        id=id_of(row), question=row.text("question"), options=options, source=of.name, video=of.clip(row, name),
        answer=letter_of(row.text("answer"), options, row.place), kind=text_of(row, "task_type"),
    )  # fmt: skip
    return Item(sample, categories_of(row, of.categories), group=f"video {name}", kind="choice")


VIDEO_MME = VideoBenchmark(
    name="video-mme",
    title="Video-MME",
    source_note="lmms-lab/Video-MME: the parquet, and the archives of videos extracted beside it; Video-MME.tsv",
    files=("Video-MME.tsv", "videomme"),
    columns={"index": ("question_id",)},
    tail="\nRespond with only the letter (A, B, C, or D) of the correct option.\nThe best answer is:",
    categories={"duration": "duration", "domain": "domain", "sub_category": "sub_category", "task": "task_type"},
    make=_item,
)
