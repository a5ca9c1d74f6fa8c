"""Two real vLLM servers against the trainer: log-probs, tool turns with pictures, new weights, and servers that fail."""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from helpers import picture
from test_generate import contexts_of
from wide_models import disturb, play_tools, sampled, trained, wide_random

from foveate.train.engine_settings import ServersEnginePart
from foveate.train.sync import build_engine, sync
from foveate.vlm import serve_vllm
from foveate.vlm.engine_server import ServerEngine, _Held
from foveate.vlm.engines import EngineError
from foveate.vlm.generate import Sampling
from foveate.vlm.images import PixelBudget
from foveate.vlm.load import VLM, save
from foveate.vlm.messages import Message
from foveate.vlm.render import Renderer

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("vllm") is None, reason="vLLM is not installed here; make test-vllm has an environment for it"
)
SEEDS = [[1, 2, 3], [4], [5, 6]]
OPTIONS = ("--dtype", "float32", "--max-model-len", "1024", "--enforce-eager", "--kv-cache-memory-bytes", str(1 << 28))


@dataclasses.dataclass
class Servers:
    vlm: VLM
    engine: ServerEngine
    processes: list[subprocess.Popen[bytes]]


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    folder = tmp_path_factory.mktemp("servers")
    vlm = wide_random("qwen2_5_vl")
    save(vlm, folder / "model")
    ports = [free_port(), free_port()]
    own = {**os.environ, "VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    processes = [
        subprocess.Popen(
            serve_vllm.command(str(folder / "model"), max_pictures=4, options=(*OPTIONS, "--port", str(port))),
            env=serve_vllm.environment(own),
            stdout=(folder / f"{port}.log").open("wb"),
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        for port in ports
    ]
    disturb(vlm, "", seed=1)  # so that the servers must be given the weights
    try:
        urls = tuple(f"http://127.0.0.1:{port}" for port in ports)
        engine = build_engine(
            ServersEnginePart(urls=urls, folder=str(folder / "weights"), sync_seconds=400, seconds=120), vlm, None
        )
        assert isinstance(engine, ServerEngine)
        yield Servers(vlm, engine, processes)
        engine.close()
    finally:
        for process in processes:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


@pytest.mark.parametrize(
    "sampling", [Sampling(max_new_tokens=24), Sampling(temperature=0.7, top_p=0.9, max_new_tokens=24)], ids=["plain", "cut"]
)
def test_law_7_and_prompts_are_spread(servers: Servers, sampling: Sampling) -> None:
    contexts = contexts_of(servers.vlm)
    done = servers.engine.generate(contexts, SEEDS, sampling)
    torch.testing.assert_close(sampled(done), trained(servers.vlm, contexts, done, sampling.temperature), atol=1e-4, rtol=0)
    assert {one.held for own in done for one in own} == {_Held(0), _Held(1)}
    assert all(len({one.held for one in own}) == 1 for own in done)
    again = servers.engine.generate(contexts[2:], [[6]], sampling)
    assert again[0][0].ids == done[2][1].ids


def test_tool_turns_with_pictures(servers: Servers, monkeypatch: pytest.MonkeyPatch) -> None:
    rollouts, scored = play_tools(servers.vlm, servers.engine, monkeypatch)
    assert max(len(one.pictures) for one in rollouts) == 4
    for one, rows in zip(rollouts, scored, strict=True):
        for turn, row in zip(one.turns, rows, strict=True):
            assert turn.action_logprobs_K == pytest.approx(row, abs=1e-4)


@pytest.mark.parametrize("what", ["visual", "language_model"])
def test_law_8_changed_weights_are_seen_in_the_same_pictures(servers: Servers, what: str) -> None:
    contexts, sampling = contexts_of(servers.vlm), Sampling(max_new_tokens=12)
    servers.engine.generate(contexts, SEEDS, sampling)
    disturb(servers.vlm, what, seed=2)
    stale = servers.engine.generate(contexts, SEEDS, sampling)
    assert (sampled(stale) - trained(servers.vlm, contexts, stale)).abs().max() > 0.1
    sync(servers.engine, servers.vlm, 1)
    fresh = servers.engine.generate(contexts, SEEDS, sampling)
    torch.testing.assert_close(sampled(fresh), trained(servers.vlm, contexts, fresh), atol=1e-4, rtol=0)
    assert not list(Path(servers.engine.folder).iterdir())


def test_a_server_with_another_pixel_budget_is_found_out(servers: Servers) -> None:
    vlm = servers.vlm
    image = dataclasses.replace(vlm.renderer.image, budget=PixelBudget(28 * 28, 400 * 28 * 28))
    engine = ServerEngine(
        dataclasses.replace(vlm, renderer=Renderer(vlm.family, vlm.tokenizer, image)), servers.engine.urls, servers.engine.folder
    )
    engine._unusable, engine._version = "", servers.engine._version
    big = engine.renderer.prompt([Message.user(picture(1, 400, 400))])
    with pytest.raises(EngineError, match=r"127.0.0.1:\d+: reads \d+ tokens where the trainer has \d+: .* \(784 to 313600 px\)"):
        engine.generate([big], [[1]], Sampling(max_new_tokens=2))
    engine.close()


def test_weights_from_elsewhere_are_refused(servers: Servers) -> None:
    engine = servers.engine
    engine._ask(1, "/update_weight_version", {"new_version": "another run's"}, 10)
    with pytest.raises(EngineError, match=rf"{engine.urls[1]}: has weights \"another run's\""):
        engine.generate(contexts_of(servers.vlm), SEEDS, Sampling(max_new_tokens=2))
    sync(engine, servers.vlm, 2)
    engine.generate(contexts_of(servers.vlm), SEEDS, Sampling(max_new_tokens=2))


def test_a_server_that_hangs_and_one_that_dies_are_named(servers: Servers, monkeypatch: pytest.MonkeyPatch) -> None:
    """Last in this file: one of the two servers does not come back."""
    engine, contexts = servers.engine, contexts_of(servers.vlm)
    monkeypatch.setattr(engine, "sync_seconds", 3.0)
    os.killpg(servers.processes[1].pid, signal.SIGSTOP)
    start = time.monotonic()
    with pytest.raises(EngineError, match=rf"{engine.urls[1]}/weight_info: no reply within 3 s"):
        engine.generate(contexts, SEEDS, Sampling(max_new_tokens=2))
    assert time.monotonic() - start < 30
    os.killpg(servers.processes[1].pid, signal.SIGCONT)
    monkeypatch.undo()
    assert len(engine.generate(contexts, SEEDS, Sampling(max_new_tokens=2))) == 3
    os.killpg(servers.processes[1].pid, signal.SIGKILL)
    with pytest.raises(EngineError, match=rf"{engine.urls[1]}/.*: the server is not there .*start it with: python -m"):
        engine.generate(contexts, SEEDS, Sampling(max_new_tokens=2))
    with pytest.raises(EngineError, match=rf"{engine.urls[1]}"):
        sync(engine, servers.vlm, 3)
    with pytest.raises(EngineError, match="the sync to version 3 failed half-way; call sync first"):
        engine.generate(contexts, SEEDS, Sampling(max_new_tokens=2))
