"""GRPO and its kin: advantages, filters, reductions and KL by hand; law 6 and packing for all of them."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Sequence
from typing import Any

import pydantic
import pytest
import torch
from helpers import picture, scripted, view_of
from hypothesis import given
from hypothesis import strategies as st

from foveate.train.batch import make_batches
from foveate.train.config import GrpoSignal
from foveate.train.measure import sampled_logprobs
from foveate.train.signals.advantage import advantages, has_variance
from foveate.train.signals.base import Context, constant_NK
from foveate.train.signals.filters import counts, reasons
from foveate.train.signals.grpo import Grpo
from foveate.train.streams import Stream, denominators, plain_weight, row_weight
from foveate.train.update import accumulate, remember_start
from foveate.vlm.load import VLM, tiny_random
from foveate.vlm.records import Group, Reward, Rollout, Sample, Signal, StopReason, Turn, View


@pytest.fixture(scope="module")
def vlm() -> VLM:
    return tiny_random("qwen3_vl", seed=1, initializer_range=0.1)


def grpo(**settings: Any) -> GrpoSignal:
    return GrpoSignal(kind="grpo", **settings)


def stream_of(**settings: Any) -> Stream:
    (stream,) = Grpo(grpo(**settings)).streams()
    return stream


def rollout_of(length: int, index: int = 0, group: str = "g") -> Rollout:
    """A rollout of ``length`` tokens; nobody reads it."""
    turn = Turn((5,) * length, (-1.0,) * length, "", StopReason.ANSWERED)
    return Rollout("s", group, index, VIEW, (turn,), StopReason.ANSWERED)


VIEW = View("student", ())


def signals_of(lengths: Sequence[int], values: Sequence[float | None]) -> list[Signal]:
    """One signal per rollout; None: filtered."""
    return [
        Signal(one, advantages_NK=None if value is None else constant_NK(one, value), stream="grpo")
        for one, value in zip([rollout_of(n, i) for i, n in enumerate(lengths)], values, strict=True)
    ]


def group_of(*ends: tuple[float, str, StopReason]) -> Group:
    """A group whose rollouts have these rewards, outcomes and ends."""
    return Group(
        Sample(id="s", question="q", answer="K"),
        tuple(
            dataclasses.replace(rollout_of(2, i), stop=stop, reward=Reward(total, outcome=outcome))  # type: ignore[arg-type]
            for i, (total, outcome, stop) in enumerate(ends)
        ),
    )


def no_teacher(pairs: object) -> list[tuple[tuple[float, ...], ...]]:
    raise AssertionError("without a KL nobody asks the reference")


# ---------------------------------------------------------------- advantages


def test_advantages_by_hand() -> None:
    rewards = [1.0, 0.0, 0.0, 0.6]  # mean .4
    assert advantages(rewards, "mean") == pytest.approx([0.6, -0.4, -0.4, 0.2])
    assert advantages(rewards, "rloo") == pytest.approx([1.0 - 0.2, -1.6 / 3, -1.6 / 3, 0.6 - 1 / 3])  # less the others' mean
    std = math.sqrt((0.36 + 0.16 + 0.16 + 0.04) / 3)
    assert advantages(rewards, "mean_std") == pytest.approx([value / (std + 1e-4) for value in (0.6, -0.4, -0.4, 0.2)])


@given(st.lists(st.floats(-2, 2), min_size=2, max_size=9), st.sampled_from(["mean_std", "mean", "rloo"]))
def test_advantages_sum_to_nothing_and_keep_the_order(rewards: list[float], kind: str) -> None:
    values = advantages(rewards, kind)
    assert sum(values) == pytest.approx(0, abs=1e-6)
    order = sorted(range(len(rewards)), key=rewards.__getitem__)
    assert all(values[a] <= values[b] + 1e-12 for a, b in itertools.pairwise(order))
    if not has_variance(rewards):
        assert values == [0.0] * len(rewards)


def test_equal_rewards_are_exactly_no_advantage_whatever_their_rounding() -> None:
    rewards = [0.1 + 0.2, 0.3, 0.3]
    assert rewards[0] != rewards[1]
    assert advantages(rewards, "mean_std") == [0.0, 0.0, 0.0]


# ---------------------------------------------------------------- filters

RIGHT, WRONG = (1.0, "right", StopReason.ANSWERED), (0.0, "wrong", StopReason.ANSWERED)
CUT = (0.0, "unparsed", StopReason.TURN_TOKENS)
NO_ANSWER = (0.0, "unparsed", StopReason.ANSWERED)


def test_filters_by_hand() -> None:
    mixed = group_of(RIGHT, WRONG, CUT, NO_ANSWER, (0.0, "wrong", StopReason.ERRORS), (0.0, "unparsed", StopReason.TURNS))
    assert reasons(mixed, grpo()) == [None] * 6
    assert reasons(mixed, grpo(filter_overlong=True)) == [None, None, "overlong", None, None, None]
    assert reasons(mixed, grpo(filter_void=True)) == [None, None, None, "void", "void", None]
    both = grpo(filter_overlong=True, filter_void=True, filter_zero_variance=True)
    assert reasons(mixed, both) == [None, None, "overlong", "void", "void", None]
    dull = group_of(WRONG, CUT, NO_ANSWER)
    assert reasons(dull, both) == ["zero_variance"] * 3
    assert counts([mixed, dull], both, prompts=2) == {
        "grpo/filtered_zero_variance": 3.0,
        "grpo/filtered_overlong": 1.0,
        "grpo/filtered_void": 2.0,
    }
    assert counts([mixed], grpo(), prompts=1) == {}


def test_a_filtered_rollout_counts_in_the_mean_and_teaches_nothing(vlm: VLM) -> None:
    made = Grpo(grpo(advantage="mean", filter_overlong=True)).build([group_of(RIGHT, WRONG, CUT, CUT)], Context(no_teacher))
    assert [one.advantages_NK for one in made] == [((0.75, 0.75),), ((-0.25, -0.25),), None, None]
    assert denominators(made, {"grpo": stream_of()}) == {"grpo": 4.0}
    assert denominators(made, {"grpo": stream_of(reduction="sequence")}) == {"grpo": 2.0}
    batches = make_batches(rendered_signals(vlm, (1.0, None, None)), {"grpo": stream_of()}, vlm.renderer, 10_000)
    assert [len(batch.packed.suffix_starts) for batch in batches] == [2], "nothing is computed for it either"
    assert make_batches(rendered_signals(vlm, (None, None)), {"grpo": stream_of()}, vlm.renderer, 10_000) == []


# ---------------------------------------------------------------- reductions


def weights(lengths: Sequence[int], values: Sequence[float | None], **settings: Any) -> list[float]:
    made, stream = signals_of(lengths, values), stream_of(**settings)
    totals = denominators(made, {"grpo": stream}, longest_tokens=settings.get("constant_tokens", 10))
    return [0.0 if one.advantages_NK is None else row_weight(one, stream, totals) for one in made]


def test_reductions_by_hand() -> None:
    lengths, values = (2, 3, 5, 6, 4), (1.0, -0.5, 0.0, -0.5, None)
    assert weights(lengths, values) == pytest.approx([1 / 16] * 4 + [0])
    assert weights(lengths, values, reduction="sequence") == pytest.approx([1 / 8, 1 / 12, 1 / 20, 1 / 24, 0])
    assert weights(lengths, values, reduction="constant") == pytest.approx([1 / 40] * 4 + [0])
    assert weights(lengths, values, reduction="constant", constant_tokens=7) == pytest.approx([1 / 28] * 4 + [0])
    # n+ = 1 with 2 tokens, n- = 2 with 9; the rollout without an advantage is on neither side
    assert weights(lengths, values, reduction="balanced") == pytest.approx([1 / 3 / 2, 2 / 3 / 9, 0, 2 / 3 / 9, 0])
    assert weights(lengths, values, reduction="balanced", weight=0.5)[1] == pytest.approx(1 / 3 / 9)
    assert weights((2, 3), (1.0, 0.5), reduction="balanced") == pytest.approx([1 / 5] * 2), "one side only: the token mean"


def test_a_kl_under_balanced_is_the_mean_over_tokens() -> None:
    made, stream = signals_of((2, 3, 5), (1.0, -1.0, 0.0)), stream_of(reduction="balanced")
    totals = denominators(made, {"grpo": stream})
    assert [plain_weight(one, stream, totals) for one in made] == pytest.approx([0.1] * 3)


@given(st.integers(1, 9), st.lists(st.sampled_from([-2.0, -0.5, 0.25, 1.0]), min_size=1, max_size=8))
def test_balanced_is_the_token_mean_when_lengths_are_equal(length: int, values: list[float]) -> None:
    lengths = [length] * len(values)
    assert weights(lengths, values, reduction="balanced") == pytest.approx(weights(lengths, values))


@given(st.lists(st.integers(1, 50), min_size=2, max_size=8), st.data())
def test_balanced_has_no_pull_from_lengths(lengths: list[int], data: st.DataObject) -> None:
    """One advantage per side, a constant loss at every token: what is left of the token mean is the difference in lengths."""
    right = data.draw(st.integers(1, len(lengths) - 1))
    values = advantages([1.0] * right + [0.0] * (len(lengths) - right), "mean")

    def pull(**settings: Any) -> float:
        return sum(w * n * a for w, n, a in zip(weights(lengths, values, **settings), lengths, values, strict=True))

    assert pull(reduction="balanced") == pytest.approx(0, abs=1e-12)
    tokens = sum(lengths[:right]) / sum(lengths)
    assert pull() == pytest.approx(tokens - right / len(lengths), abs=1e-12)


@given(st.lists(st.tuples(st.integers(1, 9), st.sampled_from([-1.0, 0.0, 2.0, None])), min_size=1, max_size=12), st.data())
def test_denominators_of_ranks_add_up(rollouts: list[tuple[int, float | None]], data: st.DataObject) -> None:
    cut = data.draw(st.integers(0, len(rollouts)))
    made = signals_of(*zip(*rollouts, strict=True))  # type: ignore[arg-type]
    for reduction in ("token", "sequence", "constant", "balanced"):
        table = {"grpo": stream_of(reduction=reduction)}
        parts = [denominators(share, table, 10) for share in (made[:cut], made[cut:])]
        summed = {key: sum(part.get(key, 0.0) for part in parts) for key in parts[0] | parts[1]}
        assert summed == denominators(made, table, 10)


def test_a_constant_length_must_come_from_somewhere() -> None:
    with pytest.raises(ValueError, match="needs constant_tokens"):
        denominators(signals_of((2,), (1.0,)), {"grpo": stream_of(reduction="constant")})


# ---------------------------------------------------------------- law 6 and packing

METHODS: dict[str, dict[str, Any]] = {
    "grpo": {},
    "dr_grpo": {"reduction": "constant", "constant_tokens": 50, "advantage": "mean"},
    "balanced, k3": {"reduction": "balanced", "kl": "k3", "kl_weight": 0.2},
    "gspo, k2": {"reduction": "sequence", "ratio": "sequence", "clip_low": 0.05, "clip_high": 0.05, "kl": "k2", "kl_weight": 0.1},
    "cispo, masked": {"policy": "cispo", "correction": "mask", "correction_level": "sequence", "correction_cap": 1.5},
    "dual clip, truncated": {"dual_clip": 2.0, "correction": "truncate", "correction_cap": 1.3, "reduction": "balanced"},
}


def rendered_signals(vlm: VLM, values: Sequence[float | None]) -> list[Signal]:
    """Groups of three with 0, 1 and 3 tool pictures and answers of several lengths; the engine's log-probs are a little off."""
    made = []
    for place, value in enumerate(values):
        g = place // 3
        view = view_of(picture(g, 56 + 28 * g, 56), "q")
        made.append((scripted(vlm, view, (0, 1, 3)[g % 3], place % 3, f"g{g}", answer="K " * (1 + place % 4)), value))
    noise = torch.Generator().manual_seed(0)

    def near(row: tuple[float, ...]) -> tuple[float, ...]:
        return tuple((torch.tensor(row) + 0.2 * torch.randn(len(row), generator=noise)).tolist())

    scores = sampled_logprobs(vlm, [(one, one.view) for one, _ in made], micro_tokens=10_000, temperature=1.0)
    signals = []
    for (one, value), own in zip(made, scores, strict=True):
        turns = [dataclasses.replace(part, action_logprobs_K=near(row)) for part, row in zip(one.turns, own, strict=True)]
        rollout = dataclasses.replace(one, turns=tuple(turns))
        taught = None if value is None else constant_NK(rollout, value)
        signals.append(Signal(rollout, advantages_NK=taught, teacher_logprobs_NK=tuple(near(row) for row in own), stream="grpo"))
    return signals


Gradients = dict[str, torch.Tensor]


def gradients_of(
    vlm: VLM, parts: Sequence[Sequence[Signal]], stream: Stream, micro_tokens: int = 10_000
) -> tuple[float, Gradients]:
    """Sum over ranks or pieces that know only the whole step's denominators."""
    table = {"grpo": stream}
    totals = denominators([one for part in parts for one in part], table)
    vlm.model.zero_grad(set_to_none=True)
    loss = sum(accumulate(vlm, None, make_batches(part, table, vlm.renderer, micro_tokens, totals), 1.0).loss for part in parts)
    return loss, {name: one.grad.clone() for name, one in vlm.model.named_parameters() if one.grad is not None}


@pytest.mark.parametrize("method", METHODS)
def test_law_6_any_cut_of_a_step_gives_the_whole(vlm: VLM, method: str) -> None:
    """Micro-batches, uneven ranks, and rollouts one by one, with 0, 1 and 3 tool pictures, filtered rollouts among them."""
    stream = stream_of(**METHODS[method])
    made = rendered_signals(vlm, (1.0, -0.5, None, 0.7, -0.7, 0.0, -1.0, None, 0.4))
    loss, wanted = gradients_of(vlm, [made], stream)
    assert max(float(one.abs().max()) for one in wanted.values()) > 1e-2
    cuts = {"micro": ([made], 1), "ranks": ([made[:3], made[3:]], 10_000), "one by one": ([[one] for one in made], 10_000)}
    for parts, micro_tokens in cuts.values():
        cut, gradients = gradients_of(vlm, parts, stream, micro_tokens)
        assert cut == pytest.approx(loss, rel=1e-4, abs=1e-6)
        for name, value in wanted.items():
            torch.testing.assert_close(gradients[name], value, atol=5e-6, rtol=1e-4)


def test_each_method_is_another_gradient(vlm: VLM) -> None:
    made = rendered_signals(vlm, (1.0, -0.5, None, 0.7, -0.7, 0.0, -1.0, None, 0.4))
    seen = [gradients_of(vlm, [made], stream_of(**settings))[1] for settings in METHODS.values()]
    flat = [torch.cat([one.flatten() for one in gradients.values()]) for gradients in seen]
    for i, first in enumerate(flat):
        for second in flat[:i]:
            assert (first - second).norm() > 1e-2 * first.norm()


# ---------------------------------------------------------------- several updates, corrections, KL


def test_ratios_of_several_updates_start_at_the_steps_first_weights(vlm: VLM) -> None:
    vlm = dataclasses.replace(vlm, model=tiny_random("qwen3_vl", seed=1, initializer_range=0.1).model)
    table = {"grpo": stream_of(correction="truncate")}

    def means(batches: Any) -> dict[str, float]:
        return accumulate(vlm, None, batches, 1.0).tally.means()

    batches, fresh = (make_batches(rendered_signals(vlm, (1.0, -1.0)), table, vlm.renderer, 10_000) for _ in range(2))
    remember_start(vlm, batches, 1.0)
    before = means(batches)
    assert before["loss/grpo/ratio"] == 1.0
    with torch.no_grad():
        vlm.model.get_input_embeddings().weight.mul_(1.05)
    after = means(batches)
    assert abs(after["loss/grpo/ratio"] - 1) > 1e-3
    for name in ("mismatch_ratio", "mismatch_kl", "truncated_frac"):
        assert after[f"loss/grpo/{name}"] == before[f"loss/grpo/{name}"], "the engine's mismatch belongs to the first weights"
    assert means(fresh)["loss/grpo/ratio"] == 1.0, "without the memory the ratio would start anew"


def test_a_correction_without_a_bound_is_the_plain_ratio(vlm: VLM) -> None:
    """On policy w x 1 and its gradient are those of exp(new - engine), unclipped; and masking everything leaves nothing."""
    made = rendered_signals(vlm, (1.0, -1.0, 0.5))
    plain = gradients_of(vlm, [made], Stream("grpo"))
    corrected = gradients_of(vlm, [made], stream_of(correction="truncate", correction_cap=1e6))
    assert corrected[0] == pytest.approx(plain[0], abs=1e-6)
    for name, value in plain[1].items():
        torch.testing.assert_close(corrected[1][name], value, atol=1e-6, rtol=1e-4)
    _, masked = gradients_of(vlm, [made], stream_of(correction="mask", correction_cap=1e-6))
    assert not any(one.any() for one in masked.values())


def test_k1_lowers_every_tokens_advantage_by_its_log_ratio() -> None:
    group = group_of(RIGHT, WRONG)

    def reference(pairs: Any) -> list[tuple[tuple[float, ...], ...]]:
        assert [view for _, view in pairs] == [VIEW, VIEW], "the reference reads the student's view"
        return [((-1.5, -0.5),), ((-1.0, -3.0),)]

    first, second = Grpo(grpo(advantage="mean", kl="k1", kl_weight=0.1)).build([group], Context(reference))
    # the sampler said -1 for every token
    assert first.advantages_NK is not None
    assert first.advantages_NK[0] == pytest.approx((0.5 - 0.05, 0.5 + 0.05))
    assert second.advantages_NK is not None
    assert second.advantages_NK[0] == pytest.approx((-0.5, -0.5 - 0.2))
    assert second.teacher_logprobs_NK == ((-1.0, -3.0),)


def test_the_reference_scores_only_what_teaches_and_in_its_place() -> None:
    def reference(pairs: Any) -> list[tuple[tuple[float, ...], ...]]:
        return [((-float(rollout.index),) * 2,) for rollout, _ in pairs]

    made = Grpo(grpo(kl="k3", kl_weight=0.1, filter_void=True)).build([group_of(NO_ANSWER, RIGHT, WRONG)], Context(reference))
    assert [one.teacher_logprobs_NK for one in made] == [None, ((-1.0, -1.0),), ((-2.0, -2.0),)]
    assert [one.advantages_NK is None for one in made] == [True, False, False]


@pytest.mark.parametrize("kind", ["k2", "k3"])
def test_a_reference_that_is_the_student_does_not_pull(vlm: VLM, kind: str) -> None:
    silent = rendered_signals(vlm, (0.0, 0.0, 0.0, 0.0))
    own = sampled_logprobs(vlm, [(one.rollout, one.rollout.view) for one in silent], micro_tokens=10_000, temperature=1.0)
    same = [dataclasses.replace(one, teacher_logprobs_NK=row) for one, row in zip(silent, own, strict=True)]
    stream = stream_of(kl=kind, kl_weight=1.0)
    loss, gradients = gradients_of(vlm, [same], stream)
    assert loss == pytest.approx(0, abs=1e-9)
    assert max(float(one.abs().max()) for one in gradients.values()) < 1e-4
    loss, gradients = gradients_of(vlm, [silent], stream)
    assert loss > 1e-3
    assert max(float(one.abs().max()) for one in gradients.values()) > 1e-2


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"kl": "k3"}, "does nothing; set both"),
        ({"kl_weight": 0.1}, "does nothing; set both"),
        ({"constant_tokens": 5}, "no use with reduction: token"),
        ({"dual_clip": 1.1}, "above 1 \\+ clip_high"),
        ({"dual_clip": 3.0, "policy": "cispo"}, "belongs to policy: clip"),
        ({"extra_rounds": 2}, "set filter_zero_variance: true"),
        ({"ratio": "sequence", "correction": "mask"}, "set correction_level: sequence"),
        ({"scaling": "std"}, "Extra inputs"),
    ],
)
def test_settings_that_mean_nothing_are_refused(settings: dict[str, Any], match: str) -> None:
    with pytest.raises(pydantic.ValidationError, match=match):
        grpo(**settings)
