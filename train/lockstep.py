"""Micro-batches of the same shape on all ranks: as many, with pictures where any rank has pictures, scored by the teacher where
any rank's are.

ZeRO sums a gradient when a module's backward has run, and ZeRO-3 gathers a module's weights when its forward runs; both wait for
all ranks. A rank whose samples are text only never calls the vision tower, and the others wait for it for ever (QwenLM/Qwen3-VL
126, modelscope/ms-swift 8102). What such a rank lacks it therefore gets as an idle sequence: one small picture and one action
token, packed behind its own rows, with no weight in any loss and no place in any mean.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ..vlm.images import Picture
from ..vlm.messages import Message
from ..vlm.records import Rollout, Signal, StopReason, Turn, View
from ..vlm.render import Renderer
from .batch import Cut, _Sequence, rendered_sequence
from .ranks import Ranks


@dataclass(frozen=True)
class Needs:
    """What a micro-batch makes a model do. ``kd`` names a stream that the teacher reads for; None: the teacher is not asked."""

    pictures: bool = False
    kd: str | None = None
    teacher_pictures: bool = False

    def __or__(self, other: Needs) -> Needs:
        return Needs(self.pictures or other.pictures, self.kd or other.kd, self.teacher_pictures or other.teacher_pictures)

    def lacks(self, other: Needs) -> bool:
        """Whether ``other`` does something that this one does not."""
        return (
            (other.pictures and not self.pictures)
            or (other.kd is not None and self.kd is None)
            or (other.teacher_pictures and not self.teacher_pictures)
        )


def in_step(ranks: Ranks, renderer: Renderer) -> Callable[[list[Cut]], list[Cut]]:
    """What makes the micro-batches of a rank go in step with those of the others; for `batch.make_batches`."""

    def level(cuts: list[Cut]) -> list[Cut]:
        shares = ranks.gather([needs(cut) for cut in cuts])
        leveled = []
        for place in range(max(map(len, shares))):
            wanted = Needs()
            for share in shares:
                wanted |= share[place] if place < len(share) else Needs()
            own = cuts[place] if place < len(cuts) else []
            idles = [[idle(wanted, renderer)]] if not own or needs(own).lacks(wanted) else []
            leveled.append([*own, *idles])
        return leveled

    return level


def needs(cut: Cut) -> Needs:
    """What the sequences of a micro-batch ask for."""
    found = Needs()
    for sequence in (one for group in cut for one in group):
        shown = bool(sequence.rendered.suffix.visuals)
        found |= Needs(pictures=shown or bool(sequence.rendered.prompt.visuals))
        for signal in sequence.signals:
            if signal.kd_weights_NK is not None and signal.teacher_view is not None:
                found |= Needs(kd=signal.stream, teacher_pictures=shown or bool(signal.teacher_view.visuals))
    return found


def idle(wanted: Needs, renderer: Renderer) -> _Sequence:
    """A sequence that does what is wanted and teaches nothing."""
    picture = Picture.of(np.zeros((28, 28, 3), np.uint8))

    def view(pictures: bool) -> View:
        return View("student", (Message.user(*([picture] if pictures else []), "-"),))

    stop = renderer.stop_ids[0]
    turn = Turn((stop,), (0.0,), "", StopReason.ANSWERED)
    rollout = Rollout("idle", "idle", 0, view(wanted.pictures), (turn,), StopReason.ANSWERED)
    signals = []
    if wanted.kd is not None:
        teacher_view = view(wanted.teacher_pictures)
        signals.append(Signal(rollout, kd_weights_NK=((0.0,),), teacher_view=teacher_view, stream=wanted.kd))
    return rendered_sequence(signals, renderer, rollout)
