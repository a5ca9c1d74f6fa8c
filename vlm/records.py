"""The seven records that every part of foveate speaks: Sample, View, Turn, Rollout, Group, Signal (Batch is in `train.batch`).

    Sample --view--> View --rollout (tools)--> Rollout --rewards--> Group --signal--> Signal --pack--> Batch --update--> weights

Shapes: N turns of a rollout, K action tokens of a turn, G rollouts of a group, T packed tokens. A ragged list carries its
letters in its name: ``advantages_NK[n][k]`` belongs to ``turns[n].action_ids_K[k]``. Alignment is by (turn, k), never by an
offset: two views of one rollout have prompts of different lengths, and tools put observations between the turns.

No torch here: readers, rewards and configuration import this file.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from .images import Picture
from .messages import Clip, Message, pictures_of, visuals_of

Box = tuple[float, float, float, float]
"""``(x1, y1, x2, y2)``; the unit is in the name of whatever holds it (``_px``, ``_k1000``, ``_frac``)."""


@dataclass(frozen=True, kw_only=True)
class Privileged:
    """What only a teacher may see. Read by `datasets.views`, which shows it, and by reward terms, which score against it.

    ``boxes_px_xyxy`` are evidence boxes in pixels of ``images[box_image]`` at full resolution; ``crops`` are evidence pictures
    that came with the data (``teacher_images``, ``bbox_images``); ``prompt`` is a teacher prompt that came with the data;
    ``hints`` help more and more (Keye-VL 1.5: concept, strategy, tool, steps, solution).
    """

    boxes_px_xyxy: tuple[Box, ...] = ()
    box_image: int = 0
    crops: tuple[Picture, ...] = ()
    rationale: str | None = None
    prompt: str | None = None
    hints: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One question about pictures or a video, as it came from a file or a generator.

    ``question`` may hold ``<image>`` placeholders (one per picture, in order) or none (pictures first). ``answer`` may be None:
    distillation needs no label. ``options`` are the texts of a multiple choice in the order of their letters.
    """

    id: str
    question: str
    answer: str | None = None
    images: tuple[Picture, ...] = ()
    video: Clip | None = None
    options: tuple[str, ...] = ()
    system: str | None = None
    privileged: Privileged = field(default_factory=Privileged)
    source: str = ""
    kind: str = ""
    difficulty: float | None = None
    tags: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class View:
    """What one reader of a sample is shown: the student, the teacher, or an evaluation.

    Two views of a sample differ in prompt and pixels, never in the action tokens.
    """

    role: Literal["student", "teacher"]
    messages: tuple[Message, ...]
    name: str = ""

    @property
    def pictures(self) -> tuple[Picture, ...]:
        return pictures_of(self.messages)

    @property
    def visuals(self) -> tuple[Picture | Clip, ...]:
        return visuals_of(self.messages)


class StopReason(enum.Enum):
    """How a rollout (or the generation of one turn) ended."""

    ANSWERED = "answered"
    """The model ended its turn and called no tool."""
    TOOL_CALL = "tool_call"
    """The model ended its turn with a tool call; only a turn stops so, and another turn follows."""
    TURN_TOKENS = "turn_tokens"
    """The token limit of one turn was reached before the end of turn."""
    TOTAL_TOKENS = "total_tokens"
    """The token limit of the whole rollout was reached."""
    TURNS = "turns"
    """The last allowed turn ended with another tool call."""
    IMAGES = "images"
    """A further picture would exceed the limit on pictures."""
    SECONDS = "seconds"
    """The time limit was reached."""
    PIXELS = "pixels"
    """A further picture would exceed the limit on pixels."""
    REPEATED_CALL = "repeated_call"
    """The same call was made too often."""
    ERRORS = "errors"
    """Too many turns made no valid call."""

    @property
    def truncated(self) -> bool:
        """True when a limit ended the text before the model did."""
        return self in (StopReason.TURN_TOKENS, StopReason.TOTAL_TOKENS, StopReason.SECONDS)


@dataclass(frozen=True, kw_only=True)
class ToolCall:
    """One call as it was understood and carried out, kept with the turn that made it.

    ``arguments`` is JSON text in the tool's own names, ``coords`` the convention in which coordinates were read, ``image`` the
    index of the source among all that the model had seen (prompt first), ``box_px_xyxy`` the region really used, in pixels of
    that source at full resolution, ``times_s`` the frames that were fetched. ``error`` says why nothing was done; None: it was.
    """

    name: str
    arguments: str = "{}"
    coords: str = ""
    image: int | None = None
    box_px_xyxy: Box | None = None
    times_s: tuple[float, ...] = ()
    error: str | None = None


@dataclass(frozen=True)
class Shown:
    """What a rollout has shown its model before a turn; this is all that a tool knows of the rollout.

    ``visuals`` are the pictures and clips in reading order, prompt first (``num_prompt`` of them), then observations;
    ``seen_px[i]`` is the width and height at which the model saw ``visuals[i]``. ``turn`` counts from 0.
    """

    visuals: tuple[Picture | Clip, ...]
    seen_px: tuple[tuple[int, int], ...]
    num_prompt: int
    turn: int = 0
    calls: tuple[ToolCall, ...] = ()

    def __post_init__(self) -> None:
        if len(self.visuals) != len(self.seen_px):
            raise ValueError(f"shown: {len(self.visuals)} pictures and clips but {len(self.seen_px)} sizes")


@dataclass(frozen=True)
class Reply:
    """What the world says to an action that called tools: the next turn's message, and a record of every call."""

    message: Message
    calls: tuple[ToolCall, ...] = ()


@dataclass(frozen=True)
class Turn:
    """One action of the model and what the world said to it.

    ``action_ids_K`` are the sampler's own tokens, the end-of-turn token included when it was sampled; they are never
    tokenized again. ``action_logprobs_K`` are natural-log probabilities at the sampling temperature with banned tokens left out,
    over the whole vocabulary (top-k and top-p change which tokens are drawn, and no log-prob). ``observation`` is the tool's
    reply, shown before the next turn.

    Example, a zoom: ``Turn(ids of '<tool_call>...</tool_call><|im_end|>', ..., observation=Message.user(crop))``, then
    ``Turn(ids of '<answer>K</answer><|im_end|>', ...)``.
    """

    action_ids_K: tuple[int, ...]
    action_logprobs_K: tuple[float, ...]
    text: str
    stop: StopReason
    observation: Message | None = None
    policy_version: int = 0
    calls: tuple[ToolCall, ...] = ()

    def __post_init__(self) -> None:
        if len(self.action_ids_K) != len(self.action_logprobs_K):
            raise ValueError(f"turn: {len(self.action_ids_K)} action ids but {len(self.action_logprobs_K)} log-probs")


@dataclass(frozen=True)
class Reward:
    """A reward with its parts: ``total`` is what the signal uses, ``terms`` says why.

    ``outcome`` is "right", "wrong", "unparsed" (no answer could be read; never a guess) or "unscored" (no reference answer).
    """

    total: float
    terms: Mapping[str, float] = field(default_factory=dict)
    outcome: Literal["right", "wrong", "unparsed", "unscored"] = "unscored"
    parsed: str | None = None


@dataclass(frozen=True)
class Rollout:
    """One sampled trajectory. Complete: it can be replayed, scored and shown without the data set."""

    sample_id: str
    group_id: str
    index: int
    view: View
    turns: tuple[Turn, ...]
    stop: StopReason
    seed: int = 0
    reward: Reward | None = None
    origin: Literal["sampled", "edited", "injected"] = "sampled"
    """edited: cut or gone on from an edited text, by a transform; injected: a text that the policy did not write."""

    @property
    def text(self) -> str:
        """The text of the last turn, which holds the answer."""
        return self.turns[-1].text if self.turns else ""

    @property
    def num_actions(self) -> int:
        return sum(len(turn.action_ids_K) for turn in self.turns)

    @property
    def calls(self) -> tuple[ToolCall, ...]:
        """The tool calls of all turns, in order."""
        return tuple(call for turn in self.turns for call in turn.calls)

    @property
    def pictures(self) -> tuple[Picture, ...]:
        """All pictures the model saw, prompt first, then observations."""
        seen = list(self.view.pictures)
        for turn in self.turns:
            if turn.observation is not None:
                seen.extend(turn.observation.pictures)
        return tuple(seen)


@dataclass(frozen=True)
class Group:
    """A sample and its sibling rollouts, all from one prompt: the unit of credit and of prefix sharing.

    ``weight`` multiplies what its rollouts teach an rl signal (the inverse of how often its sampler draws it, say).
    """

    sample: Sample
    rollouts: tuple[Rollout, ...]
    weight: float = 1.0

    @property
    def view(self) -> View:
        return self.rollouts[0].view


def _same_nesting(name: str, values_NK: Sequence[Sequence[float]] | None, rollout: Rollout) -> None:
    if values_NK is None:
        return
    want, have = [len(turn.action_ids_K) for turn in rollout.turns], [len(row) for row in values_NK]
    if want != have:
        raise ValueError(
            f"rollout {rollout.group_id}/{rollout.index}: {name} has lengths {have} per turn, the actions have {want}"
        )


@dataclass(frozen=True)
class Signal:
    """What one rollout teaches, token by token: the weights of three streams with the nesting of the action ids.

    - rl: ``advantages_NK`` times the policy-gradient term of a token (sampled-token distillation uses this stream too);
    - ce: ``ce_weights_NK`` times minus the log-prob of a token (supervised);
    - kd: ``kd_weights_NK`` times the divergence to the teacher, who reads the same actions under ``teacher_view``.

    ``teacher_logprobs_NK`` are the teacher's log-probs of the sampled tokens where a signal needed them. None: stream absent.
    ``stream`` names the loss this belongs to ("distill", "anchor:crop" ...): its divergence, weight and denominator.
    """

    rollout: Rollout
    advantages_NK: tuple[tuple[float, ...], ...] | None = None
    ce_weights_NK: tuple[tuple[float, ...], ...] | None = None
    kd_weights_NK: tuple[tuple[float, ...], ...] | None = None
    teacher_logprobs_NK: tuple[tuple[float, ...], ...] | None = None
    teacher_view: View | None = None
    stream: str = ""

    def __post_init__(self) -> None:
        for name in ("advantages_NK", "ce_weights_NK", "kd_weights_NK", "teacher_logprobs_NK"):
            _same_nesting(name, self.__dict__[name], self.rollout)
        if self.kd_weights_NK is not None and self.teacher_view is None:
            raise ValueError(f"rollout {self.rollout.group_id}/{self.rollout.index}: kd weights without a teacher view")
