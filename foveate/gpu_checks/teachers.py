"""A teacher on the device against one in the host's memory: what each holds, and what scoring with it costs."""

from __future__ import annotations

import statistics
import time
from typing import Literal

import torch

from ..train.measure import sampled_logprobs
from ..train.teacher import Teacher
from ..train.teacher_host import Streamed
from ..train.teacher_settings import TeacherPart
from ..train.update import compute_dtype
from ..vlm.load import VLM
from .measure import GIB, cells, fresh, peak_gib, wait
from .models import random_model
from .spec import Notes, Settings
from .training import signals_of

PLACES: tuple[Literal["none", "host"], ...] = ("none", "host")


def offload(settings: Settings, notes: Notes) -> None:
    """The same rollouts scored by two EMA teachers of Qwen3-VL-2B's sizes, one after the other; their log-probs must be equal."""
    device = torch.device(settings.device)
    vlm = random_model("qwen3_vl", device, settings.quick)
    said: dict[str, list[float]] = {}
    peaks: dict[str, float | None] = {}
    for place in PLACES:
        before = fresh(device)
        narrow = compute_dtype(vlm, "auto")
        teacher = Teacher(vlm, TeacherPart(weights="ema", offload=place), narrow=narrow)
        held = fresh(device) - before if device.type == "cuda" else None
        said[place] = scores(vlm, teacher, narrow, settings.quick)  # warm
        fresh(device)
        times = []
        for _ in range(3):
            start = time.perf_counter()
            scores(vlm, teacher, narrow, settings.quick)
            wait(device)
            times.append(time.perf_counter() - start)
        peaks[place] = peak_gib(device, before)
        start = time.perf_counter()
        teacher.follow(vlm, 1)
        wait(device)
        model = teacher.vlm.model
        notes.put(
            place,
            **cells(
                held_gib=None if held is None else held / GIB,
                peak_gib=peaks[place],
                host_gib=model.num_bytes / GIB if isinstance(model, Streamed) else None,
                score_s=statistics.median(times),
                move_s=time.perf_counter() - start,
                nats=max(abs(mine - other) for mine, other in zip(said[place], said["none"], strict=True)),
            ),
        )
        del teacher, model
    notes.expect(said["host"] == said["none"], "log-probs of the two teachers differ")
    if peaks["none"] is not None and peaks["host"] is not None and not settings.quick:
        notes.expect(peaks["host"] < peaks["none"], "a teacher in the host's memory needs no less of the device's")


def scores(vlm: VLM, teacher: Teacher, narrow: torch.dtype | None, quick: bool) -> list[float]:
    """Log-probs of all rollouts' tokens, in the arithmetic of training."""
    pairs = [(one.rollout, one.rollout.view) for one in signals_of(vlm, "distill", quick)]
    with torch.autocast(vlm.device.type, narrow, enabled=narrow is not None):
        found = sampled_logprobs(teacher.vlm, pairs, micro_tokens=16_384, temperature=1.0)
    return [value for rollout in found for turn in rollout for value in turn]
