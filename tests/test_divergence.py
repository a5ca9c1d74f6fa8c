"""Divergences: values by hand, against TRL and against the formula; closed-form gradients against autograd and differences."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from foveate.train.divergence import (
    divergence,
    divergence_and_gradient,
    sampled_token_advantage,
    top_support,
)

NAMES = ["forward_kl", "reverse_kl", "jsd"]


def logits(*shape: int, seed: int = 0, scale: float = 2.0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def formula(name: str, p: torch.Tensor, q: torch.Tensor, beta: float) -> torch.Tensor:
    """The definitions, on probabilities without zeros."""
    if name == "forward_kl":
        return (q * (q / p).log()).sum(-1)
    if name == "reverse_kl":
        return (p * (p / q).log()).sum(-1)
    m = (1 - beta) * p + beta * q
    return (1 - beta) * (p * (p / m).log()).sum(-1) + beta * (q * (q / m).log()).sum(-1)


def test_values_by_hand() -> None:
    student, teacher = torch.tensor([[0.5, 0.5]]).log(), torch.tensor([[0.25, 0.75]]).log()
    # KL(t||s) = .25 ln .5 + .75 ln 1.5 ; KL(s||t) = .5 ln 2 + .5 ln (2/3)
    assert divergence("forward_kl", student, teacher).item() == pytest.approx(
        0.25 * math.log(0.5) + 0.75 * math.log(1.5), abs=1e-7
    )
    assert divergence("reverse_kl", student, teacher).item() == pytest.approx(0.5 * math.log(2) + 0.5 * math.log(2 / 3), abs=1e-7)
    # m = (3/8, 5/8)
    left = 0.5 * math.log(4 / 3) + 0.5 * math.log(4 / 5)
    right = 0.25 * math.log(2 / 3) + 0.75 * math.log(6 / 5)
    assert divergence("jsd", student, teacher).item() == pytest.approx(0.5 * left + 0.5 * right, abs=1e-7)


def test_jsd_of_disjoint_rows_is_the_entropy_of_beta() -> None:
    student, teacher = torch.tensor([[0.0, -math.inf]]), torch.tensor([[-math.inf, 0.0]])
    value, gradient = divergence_and_gradient("jsd", student, teacher, 0.3)
    assert value.item() == pytest.approx(-(0.3 * math.log(0.3) + 0.7 * math.log(0.7)), abs=1e-6)
    assert gradient.isfinite().all()


@pytest.mark.parametrize("beta", [0.1, 0.5, 0.9])
def test_equals_trl(beta: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRL_EXPERIMENTAL_SILENCE", "1")
    from trl.experimental.gkd import GKDTrainer

    student, teacher = logits(6, 50, seed=1, dtype=torch.float32), logits(6, 50, seed=2, dtype=torch.float32)
    for name, trl_beta in (("jsd", beta), ("forward_kl", 0), ("reverse_kl", 1)):
        theirs = GKDTrainer.generalized_jsd_loss(student[None], teacher[None], beta=trl_beta, reduction="sum")
        ours = divergence(name, student.log_softmax(-1), teacher.log_softmax(-1), beta).sum()
        assert ours.item() == pytest.approx(theirs.item(), rel=1e-6, abs=1e-6)


@pytest.mark.parametrize("name", NAMES)
@given(seed=st.integers(0, 10_000), beta=st.floats(0.05, 0.95), scale=st.floats(0.01, 8))
@settings(max_examples=25, deadline=None)
def test_equals_the_definition(name: str, seed: int, beta: float, scale: float) -> None:
    student, teacher = logits(4, 17, seed=seed, scale=scale), logits(4, 17, seed=seed + 1, scale=scale)
    ls, lt = student.log_softmax(-1), teacher.log_softmax(-1)
    want = formula(name, ls.exp(), lt.exp(), beta)
    torch.testing.assert_close(divergence(name, ls, lt, beta), want, rtol=1e-9, atol=1e-12)
    wide, wide_gradient = divergence_and_gradient(name, ls, lt, beta)
    torch.testing.assert_close(wide, want, rtol=1e-9, atol=1e-12)
    value, gradient = divergence_and_gradient(name, ls.float(), lt.float(), beta)
    torch.testing.assert_close(value.double(), want, rtol=1e-5, atol=1e-5)  # one ulp of a log-prob of -80 is 8e-6
    torch.testing.assert_close(gradient.double(), wide_gradient, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("support", "top_c"), [("full", 1), ("top", 1), ("top", 4), ("top", 16), ("top", 17), ("top", 100)])
@pytest.mark.parametrize("name", NAMES)
def test_gradient_equals_autograd_and_finite_differences(name: str, support: str, top_c: int) -> None:
    student, teacher = logits(5, 17, seed=3).requires_grad_(), logits(5, 17, seed=4)

    def value(z: torch.Tensor) -> torch.Tensor:
        ls, lt = z.log_softmax(-1), teacher.log_softmax(-1)
        if support == "top" and top_c < 17:
            _, ls, lt = top_support(ls, lt, top_c)
        return divergence(name, ls, lt, 0.3)

    want = value(student)
    (slope,) = torch.autograd.grad(want.sum(), student)
    got, gradient = divergence_and_gradient(
        name, student.detach().log_softmax(-1), teacher.log_softmax(-1), 0.3, support=support, top_c=top_c
    )
    torch.testing.assert_close(got, want.detach(), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(gradient, slope, rtol=1e-9, atol=1e-12)
    assert torch.autograd.gradcheck(value, (student,), eps=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", NAMES)
def test_top_support_equals_full_when_c_is_v_and_never_exceeds_it(name: str) -> None:
    ls, lt = logits(8, 30, seed=5).log_softmax(-1), logits(8, 30, seed=6).log_softmax(-1)
    full, _ = divergence_and_gradient(name, ls, lt)
    before = torch.zeros(8, dtype=torch.float64)
    for c in (1, 3, 10, 29, 30):
        value, _ = divergence_and_gradient(name, ls, lt, support="top", top_c=c)
        assert (value <= full + 1e-12).all()  # merging categories loses information (data processing)
        assert (value >= before - 1e-12).all()
        before = value
    torch.testing.assert_close(before, full)


def test_top_support_takes_the_students_candidates_and_sums_to_one() -> None:
    student, teacher = torch.tensor([[0.4, 0.3, 0.2, 0.1]]).log(), torch.tensor([[0.1, 0.2, 0.3, 0.4]]).log()
    ids, s, t = top_support(student, teacher, 2)
    assert ids.tolist() == [[0, 1]]
    torch.testing.assert_close(s.exp(), torch.tensor([[0.4, 0.3, 0.3]]))
    torch.testing.assert_close(t.exp(), torch.tensor([[0.1, 0.2, 0.7]]))


@pytest.mark.parametrize("support", ["full", "top"])
@pytest.mark.parametrize("name", NAMES)
def test_equal_rows_have_divergence_and_gradient_zero(name: str, support: str) -> None:
    """Law 1 at the level of one row: 0 and not 1e-8; and one token's shift is seen."""
    rows = logits(6, 40, seed=7, dtype=torch.float32).log_softmax(-1)
    value, gradient = divergence_and_gradient(name, rows, rows.clone(), support=support, top_c=5)
    assert value.eq(0).all()
    assert gradient.abs().max() < 1e-8
    shifted, _ = divergence_and_gradient(name, rows, rows.roll(1, 0), support=support, top_c=5)
    assert (shifted > 0.01).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("support", ["full", "top"])
@pytest.mark.parametrize("name", NAMES)
def test_banned_tokens_contribute_nothing(name: str, support: str, dtype: torch.dtype) -> None:
    student, teacher = logits(4, 20, seed=8), logits(4, 20, seed=9)
    ls, lt = student.log_softmax(-1).to(dtype), teacher.log_softmax(-1).to(dtype)
    wall = torch.full((4, 3), -math.inf, dtype=dtype)
    value, gradient = divergence_and_gradient(name, ls, lt, support=support, top_c=6)
    banned, banned_gradient = divergence_and_gradient(
        name, torch.cat([ls, wall], 1), torch.cat([lt, wall], 1), support=support, top_c=6
    )
    assert value.dtype == torch.float32
    assert value.isfinite().all()
    assert gradient.isfinite().all()
    torch.testing.assert_close(banned, value)
    torch.testing.assert_close(banned_gradient[:, :20], gradient)
    assert banned_gradient[:, 20:].eq(0).all()
    torch.testing.assert_close(divergence(name, torch.cat([ls, wall], 1), torch.cat([lt, wall], 1)), divergence(name, ls, lt))


@pytest.mark.parametrize("name", NAMES)
def test_all_but_the_candidates_banned_leaves_an_empty_tail(name: str) -> None:
    ls, lt = (torch.cat([logits(2, 3, seed=s), torch.full((2, 4), -math.inf)], 1).log_softmax(-1) for s in (1, 2))
    value, gradient = divergence_and_gradient(name, ls, lt, support="top", top_c=3)
    full, full_gradient = divergence_and_gradient(name, ls, lt)
    torch.testing.assert_close(value, full)
    torch.testing.assert_close(gradient, full_gradient)


def test_extreme_logits_stay_finite() -> None:
    ls, lt = (torch.tensor([[0.0, 300.0, -300.0]]).roll(k, 1).log_softmax(-1) for k in (0, 1))
    for name in NAMES:
        value, gradient = divergence_and_gradient(name, ls, lt)
        assert value.isfinite().all()
        assert gradient.isfinite().all()
    assert divergence("forward_kl", ls, lt).item() == pytest.approx(600.0)


def test_inputs_are_left_alone_unless_told() -> None:
    ls, lt = logits(2, 9, seed=1).log_softmax(-1), logits(2, 9, seed=2).log_softmax(-1)
    kept = ls.clone(), lt.clone()
    for name in NAMES:
        for support in ("full", "top"):
            divergence_and_gradient(name, ls, lt, support=support, top_c=3)
    assert torch.equal(ls, kept[0])
    assert torch.equal(lt, kept[1])
    want = divergence_and_gradient("jsd", ls, lt)
    got = divergence_and_gradient("jsd", ls, lt, scratch=(torch.empty_like(ls), torch.empty_like(ls)))
    assert torch.equal(got[0], want[0])
    assert torch.equal(got[1], want[1])


def test_sampled_token_gradient_is_the_dense_reverse_kl_gradient_on_average() -> None:
    student, teacher = logits(1, 5, seed=11, scale=1.0).requires_grad_(), logits(1, 5, seed=12, scale=1.0)
    lt = teacher.log_softmax(-1)
    _, dense = divergence_and_gradient("reverse_kl", student.detach().log_softmax(-1), lt)
    probs = student.detach().softmax(-1)[0]

    def surrogate(tokens: torch.Tensor) -> torch.Tensor:
        mine = student.log_softmax(-1)[0, tokens]
        return -sampled_token_advantage(mine, lt[0, tokens]) * mine

    exact = torch.autograd.grad((probs * surrogate(torch.arange(5))).sum(), student)[0]  # expectation over all five tokens
    torch.testing.assert_close(exact, dense, rtol=1e-10, atol=1e-12)
    drawn = torch.multinomial(probs, 40_000, replacement=True, generator=torch.Generator().manual_seed(0))
    sampled = torch.autograd.grad(surrogate(drawn).mean(), student)[0]
    torch.testing.assert_close(sampled, dense, rtol=0, atol=0.02)
    assert dense.abs().max() > 0.1


def test_k2_by_hand() -> None:
    student, teacher = torch.tensor([[0.5, 0.3, 0.2]]).log(), torch.tensor([[0.25, 0.3, 0.45]]).log()
    value, gradient = divergence_and_gradient("reverse_kl", student, teacher, support="sampled", targets_R=torch.tensor([0]))
    assert value.item() == pytest.approx(0.5 * math.log(2) ** 2)
    # (log .5 - log .25) (1[v = 0] - p_v)
    assert gradient[0].tolist() == pytest.approx([math.log(2) * 0.5, -math.log(2) * 0.3, -math.log(2) * 0.2])
    value, gradient = divergence_and_gradient("reverse_kl", student, teacher, support="sampled", targets_R=torch.tensor([1]))
    assert value.item() == 0
    assert gradient.eq(0).all(), "both say .3"


def test_the_mean_of_k2s_gradient_over_all_tokens_is_the_gradient_of_reverse_kl() -> None:
    ls, lt = logits(1, 5, seed=11, scale=1.0).log_softmax(-1), logits(1, 5, seed=12, scale=1.0).log_softmax(-1)
    _, dense = divergence_and_gradient("reverse_kl", ls, lt)
    every = ls.expand(5, 5).contiguous(), lt.expand(5, 5).contiguous()
    value, gradient = divergence_and_gradient("reverse_kl", *every, support="sampled", targets_R=torch.arange(5))
    torch.testing.assert_close((ls[0].exp()[:, None] * gradient).sum(0), dense[0], rtol=1e-10, atol=1e-12)
    assert dense.abs().max() > 0.1
    assert float(ls[0].exp() @ value) != pytest.approx(divergence("reverse_kl", ls, lt).item(), rel=0.05), "the value is another"


def test_k2_is_differentiated_and_not_only_weighed() -> None:
    student, teacher = logits(4, 7, seed=3).requires_grad_(), logits(4, 7, seed=4).log_softmax(-1)
    targets = torch.tensor([6, 0, 3, 3])
    mine = student.log_softmax(-1)
    want = 0.5 * (mine - teacher).gather(1, targets[:, None])[:, 0] ** 2
    (slope,) = torch.autograd.grad(want.sum(), student)
    for scratch in (None, (torch.empty(4, 7, dtype=torch.float64), torch.empty(4, 7, dtype=torch.float64))):
        value, gradient = divergence_and_gradient(
            "reverse_kl", mine.detach().clone(), teacher.clone(), support="sampled", targets_R=targets, scratch=scratch
        )
        torch.testing.assert_close(value, want.detach(), rtol=1e-12, atol=1e-14)
        torch.testing.assert_close(gradient, slope, rtol=1e-10, atol=1e-13)


def test_clipped_terms_by_hand() -> None:
    student, teacher = torch.tensor([[0.5, 0.5]]).log(), torch.tensor([[0.25, 0.75]]).log()
    # forward: .25 ln .5 stays, .75 ln 1.5 = .304 is cut: what is left is -.25 log p_0, whose derivative is -.25 (1[v = 0] - p_v)
    value, gradient = divergence_and_gradient("forward_kl", student, teacher, term_clip=0.05)
    assert value.item() == pytest.approx(0.25 * math.log(0.5) + 0.05)
    assert gradient[0].tolist() == pytest.approx([-0.125, 0.125])
    # reverse: .5 ln 2 = .347 is cut, .5 ln (2/3) stays: d/dp_1 p_1 log(p_1 / .75) = ln(2/3) + 1, times dp_1/dz = (-.25, .25)
    value, gradient = divergence_and_gradient("reverse_kl", student, teacher, term_clip=0.05)
    assert value.item() == pytest.approx(0.05 + 0.5 * math.log(2 / 3))
    slope = 0.25 * (math.log(2 / 3) + 1)
    assert gradient[0].tolist() == pytest.approx([-slope, slope])


@pytest.mark.parametrize(("support", "top_c"), [("full", 1), ("top", 4)])
@pytest.mark.parametrize("name", NAMES)
def test_clipped_terms_have_no_gradient_and_the_others_keep_theirs(name: str, support: str, top_c: int) -> None:
    student, teacher = logits(6, 17, seed=3).requires_grad_(), logits(6, 17, seed=4).log_softmax(-1)
    ls, lt = student.log_softmax(-1), teacher
    if support == "top":
        _, ls, lt = top_support(ls, lt, top_c)
    p, q = ls.exp(), lt.exp()
    m = (0.7 * p + 0.3 * q).log()
    terms = {"forward_kl": q * (lt - ls), "reverse_kl": p * (ls - lt), "jsd": 0.7 * p * (ls - m) + 0.3 * q * (lt - m)}[name]
    assert 0 < (terms > 0.05).sum() < terms.numel()
    want = terms.clamp(max=0.05).sum(-1)
    (slope,) = torch.autograd.grad(want.sum(), student)
    for scratch in (None, (torch.empty(6, 17, dtype=torch.float64), torch.empty(6, 17, dtype=torch.float64))):
        value, gradient = divergence_and_gradient(
            name,
            student.detach().log_softmax(-1),
            teacher.clone(),
            0.3,
            support=support,
            top_c=top_c,
            term_clip=0.05,
            scratch=scratch,
        )
        torch.testing.assert_close(value, want.detach(), rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(gradient, slope, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_a_clip_above_all_terms_changes_nothing_and_equal_rows_stay_exactly_zero(name: str) -> None:
    ls, lt = logits(5, 11, seed=1).log_softmax(-1), logits(5, 11, seed=2).log_softmax(-1)
    want = divergence_and_gradient(name, ls, lt)
    got = divergence_and_gradient(name, ls, lt, term_clip=1e6)
    torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-12)
    value, gradient = divergence_and_gradient(name, ls, ls.clone(), term_clip=0.05)
    assert value.eq(0).all()
    assert gradient.eq(0).all()


def test_mistakes_are_named() -> None:
    rows = torch.zeros(1, 3).log_softmax(-1)
    with pytest.raises(ValueError, match="one token estimates the reverse KL only"):
        divergence_and_gradient("jsd", rows, rows, support="sampled", targets_R=torch.tensor([0]))
    with pytest.raises(ValueError, match="targets_R, the sampled tokens, are needed"):
        divergence_and_gradient("reverse_kl", rows, rows, support="sampled")
    with pytest.raises(ValueError, match=r"term_clip 0\.05 with support sampled"):
        divergence_and_gradient("reverse_kl", rows, rows, support="sampled", term_clip=0.05, targets_R=torch.tensor([0]))
    with pytest.raises(ValueError, match="must be above 0"):
        divergence_and_gradient("jsd", rows, rows, term_clip=0.0)
    with pytest.raises(ValueError, match="use one of forward_kl, reverse_kl, jsd"):
        divergence("kl", rows, rows)
    with pytest.raises(ValueError, match="between 0 and 1, or forward_kl / reverse_kl"):
        divergence("jsd", rows, rows, beta=1.0)
    with pytest.raises(ValueError, match="support 'some'"):
        divergence_and_gradient("jsd", rows, rows, support="some")
    with pytest.raises(ValueError, match="top_c 0"):
        divergence_and_gradient("jsd", rows, rows, support="top", top_c=0)
