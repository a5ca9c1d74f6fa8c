"""Log-probs of given rows: against whole logits, by hand, with temperature and banned tokens."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from foveate.vlm.logprobs import token_logprobs


def rows(n: int = 10, vocab: int = 31, width: int = 6) -> tuple[Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(0)
    return torch.randn(n, width, generator=g), torch.randn(vocab, width, generator=g), torch.randint(4, vocab, (n,), generator=g)


@pytest.mark.parametrize("chunk", [1, 3, None])
@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_equals_whole_logits(chunk: int | None, temperature: float) -> None:
    hidden, head, targets = rows()
    logits = hidden @ head.t() / temperature
    got = token_logprobs(hidden, head, targets, temperature=temperature, chunk=chunk)
    torch.testing.assert_close(got, logits.log_softmax(-1).gather(1, targets[:, None])[:, 0])
    logits[:, [0, 3]] = -math.inf
    got = token_logprobs(hidden, head, targets, temperature=temperature, banned_ids=(0, 3), chunk=chunk)
    torch.testing.assert_close(got, logits.log_softmax(-1).gather(1, targets[:, None])[:, 0])


def test_by_hand() -> None:
    hidden, head = torch.tensor([[1.0]]), torch.tensor([[math.log(6)], [math.log(3)], [0.0]])  # probabilities .6 .3 .1
    assert token_logprobs(hidden, head, torch.tensor([2])).exp().item() == pytest.approx(0.1)
    assert token_logprobs(hidden, head, torch.tensor([2]), banned_ids=[0]).exp().item() == pytest.approx(0.25)
    assert token_logprobs(hidden, head, torch.tensor([0]), banned_ids=[0]).item() == -math.inf
    # temperature 1/2 squares the odds: 36 : 9 : 1
    assert token_logprobs(hidden, head, torch.tensor([1]), temperature=0.5).exp().item() == pytest.approx(9 / 46)


def test_half_precision_is_normalised_in_fp32_and_keeps_no_graph() -> None:
    hidden, head, targets = rows()
    got = token_logprobs(hidden.bfloat16().requires_grad_(), head.bfloat16(), targets)
    assert got.dtype == torch.float32
    assert not got.requires_grad
    torch.testing.assert_close(got, token_logprobs(hidden, head, targets), rtol=0, atol=0.1)


def test_no_rows() -> None:
    hidden, head, targets = rows()
    assert token_logprobs(hidden[:0], head, targets[:0]).shape == (0,)


def test_mistakes_are_named() -> None:
    hidden, head, targets = rows()
    with pytest.raises(ValueError, match="score it at temperature 1"):
        token_logprobs(hidden, head, targets, temperature=0.0)
