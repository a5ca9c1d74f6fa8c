"""Log-probs of given rows, without ever holding R x V logits. For scoring: no gradients.

Legend: R rows, D width, V vocabulary. Temperature and banned tokens are applied as sampling applies them, so these
are the numbers that the sampler's log-probs must equal (law 7). ``chunk`` is the number of rows at a time; None chooses.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor


@torch.no_grad()
def token_logprobs(
    hidden_RD: Tensor,
    weight_VD: Tensor,
    targets_R: Tensor,
    *,
    temperature: float = 1.0,
    banned_ids: Sequence[int] = (),
    chunk: int | None = None,
) -> Tensor:
    """Natural log-probability of ``targets_R`` at every row, [R] in fp32 (fp64 for fp64); -inf for a banned token."""
    found = [
        logprobs_RV.gather(1, targets_R[span, None])[:, 0]
        for span, logprobs_RV in _chunks(hidden_RD, weight_VD, temperature, banned_ids, chunk)
    ]
    return torch.cat(found) if found else hidden_RD.new_zeros(0, dtype=_wide(hidden_RD))


def _wide(hidden_RD: Tensor) -> torch.dtype:
    return torch.float64 if hidden_RD.dtype == torch.float64 else torch.float32


def _chunks(
    hidden_RD: Tensor, weight_VD: Tensor, temperature: float, banned_ids: Sequence[int], chunk: int | None
) -> Iterator[tuple[slice, Tensor]]:
    if temperature <= 0:
        raise ValueError(f"temperature {temperature}: greedy sampling has no log-probs; score it at temperature 1")
    if chunk is None:  # some 10 million logits: 64 rows of Qwen's 152 k tokens, all rows of a tiny model
        chunk = max(16, 10_000_000 // len(weight_VD))
    for start in range(0, len(hidden_RD), chunk):
        span = slice(start, min(start + chunk, len(hidden_RD)))
        logits_RV = (hidden_RD[span] @ weight_VD.to(hidden_RD.dtype).t()).to(_wide(hidden_RD)).div_(temperature)
        if banned_ids:
            logits_RV[:, list(banned_ids)] = -torch.inf
        yield span, logits_RV.log_softmax(-1)
