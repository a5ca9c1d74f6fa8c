"""What vLLM's worker processes do for us besides their own work; named to vLLM as its ``worker_extension_cls``.

Written against vLLM 0.30 and its V1 model runner. No import of vLLM: the class is mixed into vLLM's own worker.
"""

from __future__ import annotations

from typing import Any

import torch

NAME = "foveate.vlm.engine_worker.WorkerExtension"


class WorkerExtension:
    """Mixed into vLLM's worker; its methods are called through ``collective_rpc``."""

    model_runner: Any

    def report_logprobs_before_cut(self) -> dict[str, str]:
        """Make the sampler report log-probs from before top-k and top-p; return the settings that log-probs depend on.

        vLLM's own "processed" log-probs are those after the cut and its "raw" ones lack temperature and banned tokens; neither is
        what a policy ratio starts from. Calling it again changes nothing.
        """
        cutter = self.model_runner.sampler.topk_topp_sampler
        if not isinstance(cutter.forward, _BeforeCut):
            cutter.forward = _BeforeCut(cutter.forward)
        config = self.model_runner.model_config
        return {"logprobs_mode": str(config.logprobs_mode), "dtype": str(config.dtype)}

    def take_weights(self, **source: Any) -> list[str]:
        """vLLM's ``reload_weights``; return the parameters for which nothing came: vLLM leaves them empty and only logs it."""
        model = self.model_runner.get_model()
        wanted, loaded = {name for name, _ in model.named_parameters()}, set[str]()
        load = model.load_weights

        def noting(weights: Any) -> Any:
            found = load(weights)
            loaded.update(found)
            return found

        model.load_weights = noting
        try:
            self.model_runner.reload_weights(**source)
        finally:
            del model.load_weights
        return sorted(wanted - loaded)


class _BeforeCut:
    """vLLM's ``TopKTopPSampler.forward`` with the log-probs of its input, [B, V]."""

    def __init__(self, forward: Any) -> None:
        self.forward = forward

    def __call__(
        self, logits_BV: torch.Tensor, generators: Any, k: torch.Tensor | None, p: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if k is None and p is None:
            sampled, logprobs_BV = self.forward(logits_BV, generators, k, p)
            return sampled, logprobs_BV
        logprobs_BV = logits_BV.log_softmax(-1, dtype=torch.float32)  # before the call, which may cut in place
        sampled, _ = self.forward(logits_BV, generators, k, p)
        return sampled, logprobs_BV
