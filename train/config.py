"""What a recipe may say. Bad combinations are refused here, with the way out in the message, and not hours later in the loop.

`recipes` reads the files.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import pydantic

from ..datasets.crops import Part
from ..datasets.curriculum_spec import AnyCurriculum, CurriculumSpec
from ..datasets.spec import DataSpec
from ..datasets.views import ViewSpec, resolve_view
from ..visual_tools.spec import ToolsSpec
from .curriculum_settings import check_curriculum
from .distributed_settings import DistributedPart, check_distributed
from .engine_settings import EnginePart, HFEnginePart
from .lora_settings import LoraPart, check_lora
from .replay_settings import ReplaySpec, check_replay
from .signals.distill_settings import DistillSignal
from .signals.schedule import share
from .signals.settings import GrpoSignal, SftSignal
from .teacher_settings import TeacherPart, check_teacher
from .transforms.settings import AnyTransform, check_transforms


class ModelPart(Part):
    """Which weights, how they are held, and how many pixels a picture gets."""

    name: str = "tiny"
    """"tiny" (embedded), a folder in Hugging Face format, or a hub id such as Qwen/Qwen3-VL-4B-Instruct."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of the trained weights. On a GPU the compute type is `compute`; keep float32 here: small steps vanish in bfloat16."""
    compute: Literal["auto", "float32", "bfloat16"] = "auto"
    """Type of the arithmetic: auto is bfloat16 autocast on CUDA and float32 on a CPU."""
    device: str = "auto"
    min_pixels: int | None = None
    max_pixels: int | None = None
    freeze: tuple[Literal["vision", "projector", "language"], ...] = ()
    """Parts whose weights stay as they are."""
    template: Mapping[str, Any] = pydantic.Field(default_factory=dict)
    """What the model's chat template is told besides the messages: {enable_thinking: false} for Qwen3.5, say."""
    gradient_checkpointing: bool = False
    """Recompute layers in backward: less memory, about a third more time."""
    lora: LoraPart | None = None
    """Train adapters beside frozen weights; None: the weights themselves."""


class SamplingPart(Part):
    """How rollouts are sampled. The log-probs that are kept are those at this temperature, whatever top_p and top_k cut away."""

    temperature: float = pydantic.Field(1.0, ge=0)
    top_p: float = pydantic.Field(1.0, gt=0, le=1)
    top_k: int = pydantic.Field(0, ge=0)
    """0: all tokens."""
    max_new_tokens: int = pydantic.Field(1024, ge=1)
    """Limit of one turn."""
    max_turns: int = pydantic.Field(1, ge=1)
    """1: no tools."""
    player: Literal["student", "teacher"] = "student"
    """teacher: the rollouts are the teacher's, in the student's view (off-policy distillation: 2605.12483, stage 1)."""


AnySignal = Annotated[SftSignal | DistillSignal | GrpoSignal, pydantic.Field(discriminator="kind")]


class LimitsPart(Part):
    """When a rollout ends without an answer, besides `sampling.max_turns` and `sampling.max_new_tokens`; null: no limit."""

    total_tokens: int | None = pydantic.Field(None, ge=1)
    """Tokens after the prompt, observations included."""
    pictures: int | None = pydantic.Field(None, ge=0)
    """Pictures that tools may show."""
    pixels: int | None = pydantic.Field(None, ge=0)
    """Their pixels, as the model sees them."""
    repeats: int | None = pydantic.Field(None, ge=0)
    """How often the same calls may be made again."""
    errors: int | None = pydantic.Field(None, ge=0)
    """Turns without a single valid call."""
    seconds: float | None = None
    """Time of a step's rollouts, looked at between turns; a run with this limit cannot be repeated exactly."""
    tool_seconds: float | None = 60.0
    """Time for the tools of one turn."""


class Anchor(Part):
    """A skill to keep: own prompts in one view, played in that view, held to the teacher's weights in the same view."""

    name: str
    view: ViewSpec
    data: DataSpec | None = None
    """None: the run's own data."""
    prompts: int = pydantic.Field(ge=1)
    """Prompts per step."""
    weight: float = pydantic.Field(1.0, ge=0)
    divergence: Literal["forward_kl", "reverse_kl", "jsd"] = "forward_kl"
    pool: int = pydantic.Field(0, ge=0)
    """0: the student plays new rollouts at each step. Else so many rollouts are played once, with the initial weights, and used
    in turn: long tool trajectories then cost nothing while training."""
    max_new_tokens: int | None = None
    max_turns: int = pydantic.Field(1, ge=1)

    @pydantic.field_validator("view", mode="before")
    @classmethod
    def _view(cls, value: Any) -> Any:
        return resolve_view(value)


class OptimizerPart(Part):
    """AdamW for everything, or Muon for the hidden matrices and AdamW for the rest."""

    name: Literal["adamw", "muon"] = "adamw"
    lr: float = pydantic.Field(gt=0)
    """AdamW's step."""
    muon_lr: float = pydantic.Field(0.006, gt=0)
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.0
    clip_norm: float = pydantic.Field(1.0, gt=0)
    warmup_steps: int = pydantic.Field(0, ge=0)
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    final_frac: float = pydantic.Field(0.1, ge=0, le=1)
    """Step at the end as a share of the full step (linear, cosine)."""
    spike_factor: float = pydantic.Field(20.0, gt=1)
    """A gradient norm above this many running medians is a spike."""
    on_spike: Literal["clip", "skip", "stop"] = "clip"


class EvalPart(Part):
    """The held-out split, seen through several views, before, during and after."""

    data: DataSpec
    views: dict[str, ViewSpec]
    every: int = pydantic.Field(0, ge=0)
    """Steps between evaluations; 0: only before and after."""
    during: int | None = None
    """Samples used for the evaluations during training; None: all."""
    extra: Mapping[str, DataSpec] = pydantic.Field(default_factory=dict)
    """Other data for some of the views, by the view's name."""
    tools: Mapping[str, ToolsSpec | None] = pydantic.Field(default_factory=dict)
    """Views in which tool calls are carried out, each with its tools; a name alone has those of the run."""
    max_turns: int = pydantic.Field(4, ge=1)
    """Of views with tools."""
    max_new_tokens: int = 64

    @pydantic.field_validator("views", mode="before")
    @classmethod
    def _views(cls, value: Any) -> Any:
        return {name: resolve_view(view) for name, view in value.items()} if isinstance(value, dict) else value

    @pydantic.field_validator("tools", mode="before")
    @classmethod
    def _tools(cls, value: Any) -> Any:
        return dict.fromkeys(value) if isinstance(value, list | tuple) else value

    @pydantic.model_validator(mode="after")
    def _names(self) -> EvalPart:
        for name in (*self.extra, *self.tools):
            if name not in self.views:
                raise ValueError(f"eval: {name!r} is not one of the views {sorted(self.views)}")
        return self


class CheckpointPart(Part):
    every: int = pydantic.Field(50, ge=1)
    keep_last: int = pydantic.Field(2, ge=1)
    best_view: str | None = None
    """A view of the held-out split; the checkpoint with its best accuracy is kept too. None: no best."""


class Gate(Part):
    """When a run may end before its last step, and what it must have reached: the held-out accuracy of a view, looked at in every
    evaluation, always on the same items."""

    view: str
    """One of eval.views; the checkpoint with its best accuracy is kept."""
    least: float | None = pydantic.Field(None, gt=0, le=1)
    """Accuracy to reach; None: any."""
    stop_when_reached: bool = True
    """False: all steps are taken, and `least` is asked for at the end."""
    patience: int = pydantic.Field(0, ge=0)
    """Evaluations in a row without a new best after which the run ends; 0: it does not end for that."""
    least_steps: int = pydantic.Field(0, ge=0)
    """The run does not end before this step."""
    on_miss: Literal["stop", "go_on"] = "stop"
    """What a staged run does when `least` was not reached."""


class RunConfig(Part):
    """A whole run."""

    name: str
    model: ModelPart = ModelPart()
    seed: int = 0
    steps: int = pydantic.Field(ge=1)
    data: DataSpec
    student: ViewSpec
    """What the student is shown (a preset's name or a view)."""
    prompts: int = pydantic.Field(ge=1)
    """Prompts per step."""
    rollouts: int = pydantic.Field(1, ge=1)
    """Rollouts per prompt."""
    sampling: SamplingPart = SamplingPart()
    engine: EnginePart = HFEnginePart()
    """Who samples: the trained model itself, vLLM beside it, or vLLM servers."""
    tools: ToolsSpec = ToolsSpec()
    """What a model may call where `sampling.max_turns` is above 1, and how it writes calls."""
    protocols: Mapping[str, ToolsSpec] = pydantic.Field(default_factory=dict)
    """Other tools for samples whose tag ``protocol`` has one of these names; ``none`` is played without tools."""
    limits: LimitsPart = LimitsPart()
    signals: tuple[AnySignal, ...]
    curriculum: AnyCurriculum = CurriculumSpec()
    """Which prompts are drawn, and how often each is played."""
    transforms: tuple[AnyTransform, ...] = ()
    """What is done to rewarded groups before anything is learned from them, in this order."""
    replay: ReplaySpec | None = None
    """Rollouts that are learned from again; None: each is learned from once."""
    teacher: TeacherPart = TeacherPart()
    anchors: tuple[Anchor, ...] = ()
    optimizer: OptimizerPart
    updates_per_step: int = pydantic.Field(1, ge=1)
    """Optimizer steps on one set of rollouts; 1 is strictly on-policy."""
    micro_tokens: int = pydantic.Field(16384, ge=1)
    """Packed tokens per forward pass; a group is never cut."""
    threads: int | None = pydantic.Field(None, ge=1)
    """CPU threads of torch; None: torch's own choice."""
    distributed: DistributedPart = DistributedPart()
    """How the ranks of torchrun, deepspeed or accelerate share the work; a process on its own needs none of it."""
    leak_check: bool = True
    """Refuse student views that carry something privileged."""
    eval: EvalPart | None = None
    gate: Gate | None = None
    """What ends the run early; in a staged run also what must be reached before the next stage."""
    checkpoint: CheckpointPart = CheckpointPart()
    loggers: tuple[Literal["tensorboard", "wandb", "trackio"], ...] = ("tensorboard",)
    log_rollouts_every: int = pydantic.Field(25, ge=1)
    log_rollouts: int = pydantic.Field(8, ge=0)
    """Rollouts written with their pictures each time."""

    @pydantic.field_validator("model", mode="before")
    @classmethod
    def _model(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value

    @pydantic.field_validator("student", mode="before")
    @classmethod
    def _student(cls, value: Any) -> Any:
        return resolve_view(value)

    @pydantic.model_validator(mode="after")
    def _sense(self) -> RunConfig:
        kinds = [signal.kind for signal in self.signals]
        if not kinds:
            raise ValueError("signals: a run needs at least one of sft, distill, grpo")
        if "sft" in kinds and len(kinds) > 1:
            raise ValueError("signals: sft samples nothing and cannot share a step's rollouts with another signal; use two runs")
        for one in self.signals:
            if isinstance(one, DistillSignal):
                self._distill_sense(one)
        if "grpo" in kinds and self.rollouts < 2:
            raise ValueError("rollouts: grpo compares the rollouts of one prompt; at least 2 are needed")
        if self.sampling.temperature == 0 and "sft" not in kinds:
            raise ValueError(
                "sampling.temperature: 0 samples one and the same rollout and has no log-probs to learn from; use 1.0"
            )
        if self.best_view is not None and (self.eval is None or self.best_view not in self.eval.views):
            where = "checkpoint.best_view" if self.gate is None else "gate.view"
            raise ValueError(f"{where}: {self.best_view!r} is not one of eval.views")
        self._gate_sense()
        if len({anchor.name for anchor in self.anchors}) < len(self.anchors):
            raise ValueError("anchors: each needs a name of its own")
        if self.sampling.player == "teacher" and self.engine.kind != "hf":
            raise ValueError(f"sampling.player: teacher needs engine.kind: hf; {self.engine.kind} holds the student's weights")
        check_lora(self)
        check_curriculum(self)
        check_teacher(self)
        check_transforms(self)
        check_replay(self)
        check_distributed(self)
        return self

    def _gate_sense(self) -> None:
        if self.gate is None or self.eval is None:
            return
        if not self.eval.every:
            raise ValueError("gate: it is looked at in evaluations during training; set eval.every")
        if self.checkpoint.best_view not in (None, self.gate.view):
            raise ValueError(
                f"gate.view: {self.gate.view} and checkpoint.best_view: {self.checkpoint.best_view} name two bests; remove one"
            )
        data = self.eval.extra.get(self.gate.view, self.eval.data)
        if data.split == "test":
            raise ValueError(
                f"gate.view: {self.gate.view} is scored on the test split; what chooses a checkpoint cannot report it: use "
                "split: dev (synthetic), or a file of its own"
            )

    @property
    def best_view(self) -> str | None:
        """The view whose best checkpoint is kept."""
        return self.checkpoint.best_view if self.gate is None else self.gate.view

    def _distill_sense(self, one: DistillSignal) -> None:
        if one.needs_outcomes and one.reward is None and self.grpo is None:
            raise ValueError(
                "signals: distill chooses by outcome, and nothing tells outcomes; give it a reward, or add grpo to the signals"
            )
        if one.reward is not None and self.grpo is not None:
            raise ValueError("signals: the reward of grpo tells the outcomes for distill too; remove distill's own reward")
        if one.mix == "convex" and self.grpo is None:
            raise ValueError("signals: mix: convex takes from grpo what it gives to distill; add grpo, or use mix: additive")
        if one.estimator == "k2" and one.temperature != self.sampling.temperature:
            raise ValueError(
                f"signals: estimator: k2 looks at sampled tokens, so distill.temperature {one.temperature:g} must be "
                f"sampling.temperature {self.sampling.temperature:g}"
            )
        if len(self.signals) == 1 and not self.anchors and share(one.weight, self.steps - 1) == 0:
            raise ValueError("signals: distill.weight reaches 0 before the run ends and nothing else is learned; stop there")

    @property
    def needs_teacher(self) -> bool:
        reference = self.grpo is not None and self.grpo.kl != "none"
        return bool(self.anchors) or reference or any(signal.kind == "distill" for signal in self.signals)

    @property
    def grpo(self) -> GrpoSignal | None:
        """The grpo signal, if there is one."""
        return next((signal for signal in self.signals if isinstance(signal, GrpoSignal)), None)
