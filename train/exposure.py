"""Adaptive teacher exposure: how much of the reference reasoning the teacher sees, learned while training (ATESD, 2605.11458).

The teacher is told the question, the first ``alpha`` of the reference rationale, and the final answer. A small policy maps
statistics of the run to a Beta distribution; one alpha for all samples is drawn, held for ``hold_steps``, and judged by the
student's progress over the ``horizon_steps`` that follow:

    R = sum over k of discount^k (loss_weight (L[t+k-1] - L[t+k]) + probe_weight (P[t+k] - P[t+k-1]))

L is the distillation loss of a step in nats a token; P the log-prob of the true answers of a few held-aside prompts in the
student's own view, looked at every ``probe_every`` steps. A difference of losses counts only between two steps of one alpha: what
the loss jumps by when the teacher is shown more is not progress. The policy learns by REINFORCE, with a running mean of R as its
baseline and a running deviation as its unit.

Known from the paper: the form of the context, of the policy (statistics to Beta), of the reward, the hold and the baseline. Not
published, hence knobs with defaults of ours: hold, horizon, discount, step, widths, which statistics in which form.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.distributions import Beta

from ..datasets.trajectories import Trajectory
from ..vlm.records import Rollout, Sample, View
from ..vlm.render import Renderer
from .collect import fill
from .script import play_script
from .signals.distill_settings import ExposureSpec

FEATURES = ("loss", "mismatch", "probe_nll", "confidence")
"""What the policy sees: the last loss, its running mean, running means of the probe's negative log-prob and of the student's
confidence (exp of minus its entropy)."""
_LEAST = 1e-4  # alpha stays so far from 0 and 1, where log-probs end


def answer_pairs(
    samples: Sequence[Sample], template: str, view_of: Callable[[Sample], View], renderer: Renderer
) -> list[tuple[Rollout, View]]:
    """Each sample's true answer as a reply, and the view that it is read in. `ValueError` for a sample without an answer."""
    pairs = []
    for sample in samples:
        view, text = view_of(sample), fill(template, sample, "exposure.probe_answer")
        pairs.append((play_script(Trajectory(sample, (text,)), view, None, renderer), view))
    return pairs


def mean_logprob(logprobs: Sequence[Sequence[Sequence[float]]]) -> float:
    """Of the log-probs ``[N][K]`` of replies, the mean over replies of their sums, in nats."""
    return sum(sum(map(sum, reply)) for reply in logprobs) / len(logprobs)


class Exposure:
    """The controller of one run. ``probe()`` gives P as it is now."""

    def __init__(self, config: ExposureSpec, seed: int, probe: Callable[[], float]) -> None:
        self.config, self.seed, self.probe = config, seed, probe
        self._weights = _start(config, seed)
        self._means: dict[str, float] = {}
        self._last: dict[str, float] = {}
        self._now: dict[str, Any] = {}
        self._pending: list[dict[str, Any]] = []
        self._judged: dict[str, float] = {"count": 0, "baseline": 0.0, "square": 0.0, "reward": 0.0}

    def alpha(self, step: int) -> float:
        """The share of the rationale that the teacher sees in step ``step`` (from 0). Draws a new one when the last has been held
        long enough; the steps of a run come in order."""
        if not self._now or step >= self._now["start"] + self.config.hold_steps:
            if "probe" not in self._last:
                self._last["probe"] = self.probe()
                self._follow("probe_nll", -self._last["probe"])
            seen = self._features()
            a, b = (one.item() for one in self.beta(seen))
            drawn = float(np.random.default_rng([self.seed, step, 2605]).beta(a, b))
            self._now = {"start": step, "alpha": min(max(drawn, _LEAST), 1 - _LEAST), "a": a, "b": b}
            self._pending.append({"start": step, "alpha": self._now["alpha"], "features": seen, "reward": 0.0})
        return float(self._now["alpha"])

    def observe(self, step: int, values: Mapping[str, float]) -> None:
        """The metrics of a finished step (number from 0). A step without distillation is none of the controller's."""
        loss = values.get("loss/distill/divergence", -values.get("loss/distill/advantage", math.nan))
        if not self._now or math.isnan(loss):
            return
        gain = 0.0
        if self._last.get("alpha") == self._now["alpha"]:
            gain += self.config.loss_weight * (self._last["loss"] - loss)
        self._last |= {"loss": loss, "alpha": self._now["alpha"]}
        if (step + 1) % self.config.probe_every == 0:
            found = self.probe()
            gain += self.config.probe_weight * (found - self._last["probe"])
            self._last["probe"] = found
            self._follow("probe_nll", -found)
        self._follow("mismatch", loss)
        self._follow("confidence", math.exp(-values.get("policy/entropy", 0.0)))
        for one in self._pending:
            one["reward"] += self.config.discount ** (step - one["start"]) * gain
        over = [one for one in self._pending if step - one["start"] >= self.config.horizon_steps - 1]
        self._pending = [one for one in self._pending if one not in over]
        for one in over:
            self._learn(one["features"], one["alpha"], one["reward"])

    def _follow(self, name: str, value: float) -> None:
        before = self._means.get(name)
        self._means[name] = value if before is None else before + (1 - self.config.decay) * (value - before)

    def _features(self) -> list[float]:
        """All of them 0 or above, large ones flattened; 0 for what was not seen yet."""
        found = {"loss": self._last.get("loss", 0.0), **self._means}
        return [math.log1p(max(0.0, found.get(name, 0.0))) for name in FEATURES]

    def beta(self, features: Sequence[float]) -> tuple[Tensor, Tensor]:
        """The parameters of the distribution, both above 1: it has one peak, between 0 and 1."""
        weights = self._weights
        hidden_H = torch.tanh(weights["in_HF"] @ torch.tensor(features, dtype=torch.float64) + weights["in_H"])
        a, b = 1 + torch.nn.functional.softplus(weights["out_2H"] @ hidden_H + weights["out_2"])
        return a, b

    def _learn(self, features: Sequence[float], alpha: float, reward: float) -> None:
        """One step of REINFORCE, then the reward joins the baseline. The first reward is the baseline and teaches nothing."""
        judged, decay = self._judged, self.config.decay
        judged["count"] += 1
        judged["reward"] = reward
        if judged["count"] == 1:
            judged["baseline"] = reward
            return
        gap = reward - judged["baseline"]
        judged["square"] = decay * judged["square"] + (1 - decay) * gap**2
        unit = math.sqrt(judged["square"] / (1 - decay ** (judged["count"] - 1)))
        judged["baseline"] += (1 - decay) * gap
        if unit > 0:
            self.reinforce(features, alpha, gap / unit)

    def reinforce(self, features: Sequence[float], alpha: float, advantage: float) -> None:
        """Weights += lr x advantage x the gradient of log Beta(alpha; a, b)."""
        logprob = Beta(*self.beta(features)).log_prob(torch.tensor(alpha, dtype=torch.float64))
        gradients = torch.autograd.grad(logprob, list(self._weights.values()))
        with torch.no_grad():
            for weight, gradient in zip(self._weights.values(), gradients, strict=True):
                weight += self.config.lr * advantage * gradient

    def metrics(self) -> dict[str, float]:
        """Alpha, the distribution's mean and a + b, the last reward and its baseline, the probe."""
        if not self._now:
            return {}
        a, b = self._now["a"], self._now["b"]
        return {
            "exposure/alpha": self._now["alpha"],
            "exposure/mean": a / (a + b),
            "exposure/concentration": a + b,
            "exposure/reward": self._judged["reward"],
            "exposure/baseline": self._judged["baseline"],
            "exposure/probe_logprob": self._last["probe"],
        }

    def save(self, folder: Path) -> None:
        state = {name: self.__dict__[name] for name in _KEPT}
        torch.save({**state, "_weights": {name: one.detach() for name, one in self._weights.items()}}, folder / "exposure.pt")

    def load(self, folder: Path) -> None:
        state = torch.load(folder / "exposure.pt", weights_only=True)
        for name in _KEPT:
            self.__dict__[name] = state[name]
        self._weights = {name: one.requires_grad_(True) for name, one in state["_weights"].items()}


_KEPT = ("_means", "_last", "_now", "_pending", "_judged")


def _start(config: ExposureSpec, seed: int) -> dict[str, Tensor]:
    """Weights of the policy: whatever it sees, it starts with the distribution of the settings."""
    rng = np.random.default_rng([seed, 2605])
    wanted = (config.start_mean * config.start_concentration, (1 - config.start_mean) * config.start_concentration)
    start = {
        "in_HF": rng.standard_normal((config.hidden, len(FEATURES))) / math.sqrt(len(FEATURES)),
        "in_H": np.zeros(config.hidden),
        "out_2H": np.zeros((2, config.hidden)),
        "out_2": np.log(np.expm1(np.array(wanted) - 1)),  # softplus, undone
    }
    return {name: torch.tensor(value, dtype=torch.float64, requires_grad=True) for name, value in start.items()}
