"""Accuracy of a model on a held-out split, seen through several views: the gap between them is what a run tries to close."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..datasets.views import ViewSpec, make_view
from ..rewards.combine import score_text
from ..visual_tools.spec import ToolsSpec, build_toolbox
from ..vlm.generate import HFEngine, Sampling
from ..vlm.images import Picture
from ..vlm.load import VLM
from ..vlm.messages import Message, to_json
from ..vlm.records import Rollout, Sample
from ..vlm.rollout import Limits, Rules, rollout
from .intervals import accuracy_interval

_PROMPTS_AT_ONCE = 128


@dataclass(frozen=True)
class HeldOut:
    """One view of a held-out split; with ``tools`` its tool calls are carried out (at most ``max_turns`` turns)."""

    samples: Sequence[Sample]
    view: ViewSpec
    tools: ToolsSpec | None = None
    max_turns: int = 1


@dataclass(frozen=True)
class HoldoutEvaluator:
    """Greedy accuracy of each view. ``during`` limits the samples of evaluations that are not whole."""

    views: Mapping[str, HeldOut]
    max_new_tokens: int
    during: int | None = None
    num_cases: int = 24
    store: Callable[[Picture], str] | None = None
    """Keeps a picture and returns its name; with it the cases carry what the model was shown."""

    def __call__(self, vlm: VLM, step: int, whole: bool) -> dict[str, Any]:
        """``{"step", "whole", "seconds", "views": {name: {"accuracy", "ci95", "n", ...}}}``; unparsed counts as wrong."""
        start = time.perf_counter()
        limit = None if whole else self.during
        views = {name: self._view(vlm, held, limit) for name, held in self.views.items()}
        return {"step": step, "whole": whole, "seconds": time.perf_counter() - start, "views": views}

    def _view(self, vlm: VLM, held: HeldOut, limit: int | None) -> dict[str, Any]:
        samples = [held.samples[index] for index in range(len(held.samples) if limit is None else min(limit, len(held.samples)))]
        played = [
            one
            for start in range(0, len(samples), _PROMPTS_AT_ONCE)
            for one in self._play(vlm, held, samples[start : start + _PROMPTS_AT_ONCE])
        ]
        judged = [score_text(sample, one.text, truncated=one.stop.truncated) for sample, one in zip(samples, played, strict=True)]
        right = [int(one.outcome == "right") for one in judged]
        return {
            "accuracy": sum(right) / max(1, len(right)),
            "ci95": list(accuracy_interval(sum(right), len(right))),
            "n": len(right),
            "unparsed_frac": sum(one.outcome == "unparsed" for one in judged) / max(1, len(right)),
            "truncated_frac": sum(one.stop.truncated for one in played) / max(1, len(right)),
            "tokens_mean": sum(one.num_actions for one in played) / max(1, len(right)),
            "turns_mean": sum(len(one.turns) for one in played) / max(1, len(right)),
            "right": right,
            "ids": [sample.id for sample in samples],
            "cases": [
                {
                    "id": sample.id,
                    "question": sample.question,
                    "answer": sample.answer,
                    "texts": [turn.text for turn in one.turns],
                    "parsed": verdict.parsed,
                    "outcome": verdict.outcome,
                    "messages": to_json(one.view.messages, self.store) if self.store else [],
                    "shown": to_json(_observations(one), self.store) if self.store else [],
                }
                for sample, one, verdict in list(zip(samples, played, judged, strict=True))[: self.num_cases]
            ],
        }

    def _play(self, vlm: VLM, held: HeldOut, samples: Sequence[Sample]) -> list[Rollout]:
        toolbox = None if held.tools is None else build_toolbox(held.tools, vlm.family.coords)
        prompt = None if toolbox is None else toolbox.system_prompt
        pairs = [(sample, make_view(sample, held.view, "student", prompt)) for sample in samples]
        sampling = Sampling(temperature=0.0, max_new_tokens=self.max_new_tokens)
        groups = rollout(
            pairs,
            HFEngine(vlm),
            vlm.renderer,
            n=1,
            sampling=sampling,
            seed=0,
            rules=Rules(toolbox, Limits(turns=held.max_turns)),
        )
        return [group.rollouts[0] for group in groups]


def _observations(one: Rollout) -> list[Message]:
    return [turn.observation for turn in one.turns if turn.observation is not None]
