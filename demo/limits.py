"""What a visitor of the demo may send, and the sentence that refuses more."""

from __future__ import annotations

from dataclasses import dataclass

_MB = 1 << 20


class DemoError(ValueError):
    """Something that a visitor sent and that is not taken: a sentence that says what was wrong and what would do."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Bounds on what is uploaded and asked.

    ``megapixels`` holds for pictures, ``frame_megapixels`` for a frame of a video (3840 x 2160 by default); both are read from
    the file's header, before anything is decoded. ``frames`` of a video are shown to the model. ``queue`` is how many requests
    may wait, ``together`` how many are played at once.
    """

    upload_mb: int = 50
    megapixels: float = 50.0
    frame_megapixels: float = 8.3
    video_s: float = 120.0
    frames: int = 8
    question_chars: int = 4000
    queue: int = 100
    together: int = 16

    def __post_init__(self) -> None:
        if min(self.upload_mb, self.megapixels, self.video_s, self.frames, self.question_chars, self.queue, self.together) <= 0:
            raise ValueError(f"demo: all limits must be positive, got {self}")

    @property
    def upload_bytes(self) -> int:
        return self.upload_mb * _MB

    def check_bytes(self, num_bytes: int, name: str) -> None:
        """Raises `DemoError` for a file that is too large."""
        if num_bytes > self.upload_bytes:
            raise DemoError(f"{name} has {num_bytes / _MB:.1f} MB; at most {self.upload_mb} MB are taken here.")

    def check_pixels(self, size_px: tuple[int, int], name: str, video: bool = False) -> None:
        """Raises `DemoError` for a picture, or a frame of a video, with too many pixels."""
        most = self.frame_megapixels if video else self.megapixels
        width, height = size_px
        if width * height > most * 1e6:
            what = "has frames of" if video else "has"
            raise DemoError(
                f"{name} {what} {width:,} x {height:,} pixels, {width * height / 1e6:,.1f} megapixels; at most {most:g} "
                "megapixels are taken here. Make it smaller, or cut out the part that matters."
            )

    def check_seconds(self, seconds: float, name: str) -> None:
        """Raises `DemoError` for a video that is too long."""
        if seconds > self.video_s:
            raise DemoError(f"{name} lasts {seconds:.0f} seconds; at most {self.video_s:g} are taken here. Cut it first.")

    def check_question(self, question: str) -> str:
        """The question without blanks around it. Raises `DemoError` for an empty or a very long one."""
        asked = question.strip()
        if not asked:
            raise DemoError("The question is empty. Write what you want to know about the picture.")
        if len(asked) > self.question_chars:
            raise DemoError(f"The question has {len(asked):,} characters; at most {self.question_chars:,} are taken here.")
        return asked
