"""What engines with a copy of the weights rest on, without vLLM: the weights they are handed, the wire, and its errors."""

from __future__ import annotations

import base64
import dataclasses
import functools
import io
import json
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pydantic
import pytest
import torch
from helpers import picture
from PIL import Image
from safetensors.torch import load_file

from foveate.train.engine_settings import EnginePart, HFEnginePart, ServersEnginePart, VLLMEnginePart
from foveate.train.sync import build_engine, merged_weights, resting, sync
from foveate.vlm.engine_server import ServerEngine
from foveate.vlm.engine_worker import WorkerExtension
from foveate.vlm.engines import EngineError, check_pictures
from foveate.vlm.generate import Completion, HFEngine, Sampling
from foveate.vlm.load import VLM, tiny_random
from foveate.vlm.messages import Clip, Message
from foveate.vlm.pixels import frame_CHW
from foveate.vlm.records import StopReason
from foveate.vlm.segments import Segment
from foveate.vlm.serve_vllm import command, environment, main
from foveate.vlm.weight_files import write_weights


@functools.cache
def vlm() -> VLM:
    return tiny_random("qwen2_5_vl", seed=1)


class FakeServer:
    """Speaks vLLM's protocol: widens image tokens as it is told to, and answers with the tokens that it is told to."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, Any]] = []
        self.faults: dict[str, Callable[[BaseHTTPRequestHandler], None]] = {}
        self.version, self.mode, self.ids, self.widen = "default", "processed_logprobs", [40, 41], True
        self.weights: dict[str, torch.Tensor] = {}
        self.missing: list[str] = []
        owner = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.answer(None)

            def do_POST(self) -> None:
                self.answer(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

            def answer(self, body: Any) -> None:
                owner.seen.append((self.path, body))
                if self.path in owner.faults:
                    owner.faults[self.path](self)
                    return
                data = json.dumps(owner.reply(self.path, body)).encode()
                self.send_response(200)
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *args: object) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}"
        threading.Thread(target=self.http.serve_forever, daemon=True).start()

    def reply(self, path: str, body: Any) -> Any:
        if path == "/collective_rpc" and body["method"] == "take_weights":
            for file in Path(body["kwargs"]["weights_path"]).glob("*.safetensors"):
                self.weights |= load_file(file)
            return {"results": [self.missing]}
        if path == "/collective_rpc":
            return {"results": [{"logprobs_mode": self.mode, "dtype": "torch.float32"}]}
        if path == "/update_weight_version":
            self.version = body["new_version"]
        if path == "/inference/v1/generate":
            ids = self.widened(body) if self.widen else body["token_ids"]
            content = [{"logprob": -0.5 - place} for place in range(len(self.ids))]
            choice = {"token_ids": self.ids, "finish_reason": "length", "logprobs": {"content": content}}
            return {"prompt_token_ids": ids, "choices": [choice]}
        return {"success": True, "weight_version": self.version}

    def widened(self, body: Any) -> list[int]:
        parts, ids = iter(body.get("content_parts", ())), []
        for token in body["token_ids"]:
            times = 1
            if token == vlm().model.config.image_token_id:
                image = decoded(next(parts)["url"])
                times = image.width * image.height // 28**2
            ids += [token] * times
        return ids

    def asked(self, path: str) -> list[Any]:
        return [body for at, body in self.seen if at == path]


def decoded(url: str) -> Image.Image:
    kind, _, data = url.partition("base64,")
    assert kind == "data:image/png;"
    return Image.open(io.BytesIO(base64.b64decode(data)))


@pytest.fixture
def fakes() -> Iterator[list[FakeServer]]:
    made = [FakeServer(), FakeServer()]
    yield made
    for one in made:
        one.http.shutdown()


def engine_of(fakes: list[FakeServer], folder: Path, **settings: Any) -> ServerEngine:
    part = ServersEnginePart(
        urls=tuple(one.url + "/" for one in fakes), folder=str(folder), **({"sync_seconds": 20.0} | settings)
    )
    engine = build_engine(part, vlm(), None)
    assert isinstance(engine, ServerEngine)
    return engine


def contexts() -> list[Segment]:
    prompt = vlm().renderer.prompt
    return [
        prompt([Message.user(picture(1, 90, 60), "a", picture(2, 60, 140), "b")]),
        prompt([Message.user("No picture.")]),
    ]


# ---- the wire -------------------------------------------------------------------------------------------------------------


def test_ids_and_pixels_arrive_as_they_were_rendered(fakes: list[FakeServer], tmp_path: Path) -> None:
    engine, (first, second) = engine_of(fakes, tmp_path), contexts()
    done = engine.generate([first, second], [[3, 4], [5]], Sampling(0.7, 0.9, 20, 8))
    assert [[one.ids for one in own] for own in done] == [[(40, 41)] * 2, [(40, 41)]]
    assert done[0][0].logprobs == (-0.5, -1.5)
    assert done[0][0].stop is StopReason.TURN_TOKENS
    bodies = [body for fake in fakes for body in fake.asked("/inference/v1/generate")]
    with_pictures = [body for body in bodies if "content_parts" in body]
    assert sorted(body["sampling_params"]["seed"] for body in bodies) == [3, 4, 5]
    assert len(with_pictures) == 2
    for part, span in zip(with_pictures[0]["content_parts"], first.visuals, strict=True):
        assert part["uuid"] == span.item.key
        want = frame_CHW(span.item.source, span.item.width_px, span.item.height_px)  # type: ignore[arg-type]
        assert np.array_equal(np.array(decoded(part["url"])), want.permute(1, 2, 0).numpy())
    pad = vlm().model.config.image_token_id
    assert with_pictures[0]["token_ids"].count(pad) == 2
    assert [token for token in with_pictures[0]["token_ids"] if token != pad] == [t for t in first.ids_T.tolist() if t != pad]
    sent = with_pictures[0]["sampling_params"]
    assert (sent["temperature"], sent["top_p"], sent["top_k"], sent["max_tokens"]) == (0.7, 0.9, 20, 8)
    assert sent["stop_token_ids"] == list(vlm().renderer.stop_ids)
    assert sent["ignore_eos"] is True
    assert sent["logit_bias"] == {str(token): -1e9 for token in vlm().renderer.banned_ids}


def test_a_stop_token_ends_a_completion(fakes: list[FakeServer], tmp_path: Path) -> None:
    for fake in fakes:
        fake.ids = [40, vlm().renderer.stop_ids[0]]
    ((one,),) = engine_of(fakes, tmp_path).generate(contexts()[1:], [[1]], Sampling(max_new_tokens=2))
    assert one.stop is StopReason.ANSWERED
    assert one.ids == (40, vlm().renderer.stop_ids[0])


def test_prompts_are_spread_and_later_turns_go_back(fakes: list[FakeServer], tmp_path: Path) -> None:
    engine, context = engine_of(fakes, tmp_path), contexts()[1]
    done = engine.generate([context] * 4, [[1], [2], [3], [4]], Sampling())
    assert [len(fake.asked("/inference/v1/generate")) for fake in fakes] == [2, 2]
    before: list[Completion | None] = [done[1][0]] * 3
    engine.generate([context] * 3, [[1], [2], [3]], Sampling(), after=before)
    assert sorted(len(fake.asked("/inference/v1/generate")) for fake in fakes) == [2, 5]


def test_requests_on_their_way_are_bounded(fakes: list[FakeServer], tmp_path: Path) -> None:
    now = most = 0
    lock = threading.Lock()
    fake = fakes[0]
    plain = fake.reply

    def slow(path: str, body: Any) -> Any:
        nonlocal now, most
        if path != "/inference/v1/generate":
            return plain(path, body)
        with lock:
            now += 1
            most = max(most, now)
        time.sleep(0.02)
        with lock:
            now -= 1
        return plain(path, body)

    fake.reply = slow  # type: ignore[method-assign]
    engine = engine_of([fake], tmp_path, requests=3)
    engine.generate([contexts()[1]], [list(range(12))], Sampling())
    assert most == 3
    now = most = 0
    other = ServerEngine(vlm(), [fake.url], tmp_path, requests=5, client=1, clients=2)  # its half of five
    with pytest.raises(EngineError, match="it has not been given any weights yet; call sync first"):
        other.generate([contexts()[1]], [[1]], Sampling())
    other.adopt(engine.weights)
    other.generate([contexts()[1]], [list(range(12))], Sampling())
    assert most == 2


def fail(code: int) -> Callable[[BaseHTTPRequestHandler], None]:
    def act(handler: BaseHTTPRequestHandler) -> None:
        handler.send_error(code, "as told")

    return act


def hang(handler: BaseHTTPRequestHandler) -> None:
    time.sleep(8)


def cut_off(handler: BaseHTTPRequestHandler) -> None:
    handler.close_connection = True


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (fail(404), "404 .*lacks this address; start it with"),
        (fail(500), "500 .*look at the server's log"),
        (fail(400), "400 .*cannot be served as the server was started"),
        (hang, "no reply within 1 s"),
        (cut_off, "the server is not there"),
    ],
    ids=["404", "500", "400", "hang", "cut off"],
)
def test_a_failing_server_is_named_at_once(
    fakes: list[FakeServer], tmp_path: Path, fault: Callable[[BaseHTTPRequestHandler], None], message: str
) -> None:
    engine = engine_of(fakes, tmp_path, seconds=1.0)
    fakes[1].faults["/inference/v1/generate"] = fault
    start = time.monotonic()
    with pytest.raises(EngineError, match=f"(?s){fakes[1].url}/inference/v1/generate: .*{message}"):
        engine.generate([contexts()[1]] * 40, [[seed] for seed in range(40)], Sampling())
    assert time.monotonic() - start < 15


def test_a_server_that_never_comes_up(tmp_path: Path, fakes: list[FakeServer]) -> None:
    gone = fakes[1]
    gone.http.shutdown()
    gone.http.server_close()
    with pytest.raises(EngineError, match=f"{gone.url}/health: the server is not there .*start it with: python -m foveate"):
        engine_of(fakes, tmp_path, sync_seconds=1.0)


def test_a_server_with_other_logprobs_is_refused(fakes: list[FakeServer], tmp_path: Path) -> None:
    fakes[0].mode = "raw_logprobs"
    with pytest.raises(EngineError, match=f"{fakes[0].url}: its log-probs are raw_logprobs"):
        engine_of(fakes, tmp_path)


def test_another_number_of_image_tokens_is_an_error(fakes: list[FakeServer], tmp_path: Path) -> None:
    engine = engine_of(fakes, tmp_path)
    for fake in fakes:
        fake.widen = False
    with pytest.raises(EngineError, match=r"reads \d+ tokens where the trainer has \d+: it gives 2 pictures another number"):
        engine.generate(contexts(), [[1], [2]], Sampling())


def test_an_aborted_completion_is_an_error(fakes: list[FakeServer], tmp_path: Path) -> None:
    engine = engine_of(fakes, tmp_path)
    for fake in fakes:
        fake.ids = []
    with pytest.raises(EngineError, match="a completion ended with 'length', 0 tokens"):
        engine.generate(contexts(), [[1], [2]], Sampling())


# ---- weights --------------------------------------------------------------------------------------------------------------


def test_a_sync_reaches_every_server_and_resets_every_cache(fakes: list[FakeServer], tmp_path: Path) -> None:
    engine = engine_of(fakes, tmp_path)
    for fake in fakes:
        fake.seen.clear()
    assert sync(engine, vlm(), 12) > 0
    for fake in fakes:
        done = [path for path, _ in fake.seen]
        assert done == [
            "/pause?mode=abort", "/collective_rpc", "/reset_prefix_cache", "/reset_mm_cache", "/reset_encoder_cache",
            "/update_weight_version", "/resume",
        ]  # fmt: skip
        assert fake.version.startswith("weights-000012-")
        state = dict(vlm().model.named_parameters())
        assert fake.weights.keys() == state.keys()
        assert all(torch.equal(fake.weights[name], value) for name, value in state.items())
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("path", ["/collective_rpc", "/reset_encoder_cache", "/resume"])
def test_a_sync_that_fails_anywhere_stops_the_engine(fakes: list[FakeServer], tmp_path: Path, path: str) -> None:
    engine = engine_of(fakes, tmp_path)
    fakes[1].faults[path] = fail(500)
    with pytest.raises(EngineError, match=f"{fakes[1].url}{path}: 500"):
        sync(engine, vlm(), 1)
    with pytest.raises(EngineError, match=r"cannot generate, because the sync to version 1 failed half-way; call sync first"):
        engine.generate(contexts(), [[1], [2]], Sampling())
    fakes[1].faults.clear()
    sync(engine, vlm(), 2)
    engine.generate(contexts(), [[1], [2]], Sampling())


def test_weights_that_did_not_come_are_an_error(fakes: list[FakeServer], tmp_path: Path) -> None:
    engine = engine_of(fakes, tmp_path)
    fakes[1].missing = ["visual.a", "lm_head.weight"]
    with pytest.raises(EngineError, match=f"{fakes[1].url}: no weights came for 2 of its parameters, such as lm_head.weight"):
        sync(engine, vlm(), 1)


def test_a_prefix_cache_that_is_not_reset_is_an_error(fakes: list[FakeServer], tmp_path: Path) -> None:
    engine = engine_of(fakes, tmp_path)
    fakes[0].reply = lambda path, body: {"success": False, "results": [[]]}  # type: ignore[method-assign]
    with pytest.raises(EngineError, match=f"{fakes[0].url}: its prefix cache could not be reset"):
        sync(engine, vlm(), 1)


def test_a_server_with_weights_from_elsewhere_is_refused(fakes: list[FakeServer], tmp_path: Path) -> None:
    engine = engine_of(fakes, tmp_path)
    fakes[1].version = "default"  # restarted
    with pytest.raises(EngineError, match=f"{fakes[1].url}: has weights 'default', not 'weights-000000-"):
        engine.generate(contexts(), [[1], [2]], Sampling())


def test_weights_are_written_in_parts_and_whole_or_not_at_all(tmp_path: Path) -> None:
    made = {f"w{n}": torch.full((4,), float(n)) for n in range(5)}
    write_weights(made.items(), tmp_path / "w", file_bytes=32)
    files = sorted((tmp_path / "w").iterdir())
    assert [sorted(load_file(file)) for file in files] == [["w0", "w1"], ["w2", "w3"], ["w4"]]

    def broken() -> Iterator[tuple[str, torch.Tensor]]:
        yield "w0", torch.zeros(4)
        raise RuntimeError("no more")

    with pytest.raises(RuntimeError, match="no more"):
        write_weights(broken(), tmp_path / "v")
    assert [path.name for path in tmp_path.iterdir()] == ["w"]


def test_weights_without_adapters_are_those_of_the_model() -> None:
    model = vlm().model
    found = dict(merged_weights(model))
    assert found.keys() == {name for name, _ in model.named_parameters()}
    assert not any(value.requires_grad for value in found.values())


def test_a_shared_weight_comes_under_both_names(tmp_path: Path) -> None:
    class Tied(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.head = torch.nn.Linear(2, 2, bias=False), torch.nn.Linear(2, 2, bias=False)
            self.head.weight = self.embed.weight

    model = Tied()
    found = dict(merged_weights(model))
    assert found.keys() == {"embed.weight", "head.weight"}
    write_weights(found.items(), tmp_path / "w")
    (file,) = (tmp_path / "w").iterdir()
    assert all(torch.equal(value, model.embed.weight) for value in load_file(file).values())


@pytest.mark.parametrize("settings", [{}, {"use_rslora": True}, {"use_dora": True}], ids=["lora", "rslora", "dora"])
@pytest.mark.parametrize("merged", [False, True])
def test_adapters_are_merged_once_and_left_alone(settings: dict[str, Any], merged: bool) -> None:
    peft = pytest.importorskip("peft")
    own = tiny_random("qwen2_5_vl", seed=2)
    names = {name for name, _ in own.model.named_parameters()}
    config = peft.LoraConfig(
        r=2, lora_alpha=4, target_modules=["q_proj", "qkv", "down_proj"], modules_to_save=["patch_embed"], **settings
    )
    model = peft.get_peft_model(own.model, config)
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name or "modules_to_save" in name:
                parameter.add_(torch.randn(parameter.shape, generator=draw))
    if merged:
        model.merge_adapter()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found = {name: value.clone() for name, value in merged_weights(model)}
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    if merged:
        model.unmerge_adapter()
    want = dict(model.merge_and_unload().named_parameters())
    assert found.keys() == names == want.keys()
    for name, value in want.items():
        torch.testing.assert_close(found[name], value, atol=1e-5, rtol=0, msg=name)


def test_a_quantised_base_is_refused() -> None:
    peft = pytest.importorskip("peft")
    own = tiny_random("qwen2_5_vl", seed=2)
    model = peft.get_peft_model(own.model, peft.LoraConfig(r=2, target_modules=["q_proj"]))
    layer = next(module for module in model.modules() if isinstance(module, peft.tuners.tuners_utils.BaseTunerLayer))
    layer.get_base_layer().weight = torch.nn.Parameter(torch.zeros(8, 8, dtype=torch.uint8), requires_grad=False)
    with pytest.raises(ValueError, match=r"q_proj.base_layer.weight: its base weights are quantised \(torch.uint8\)"):
        list(merged_weights(model))


def test_an_engine_that_samples_from_the_trained_model_needs_nothing() -> None:
    engine = build_engine(HFEnginePart(max_tokens=77), vlm(), torch.bfloat16)
    assert isinstance(engine, HFEngine)
    assert (engine.max_tokens, engine.autocast) == (77, torch.bfloat16)
    with resting(engine):
        assert sync(engine, vlm(), 1) == 0.0


# ---- pictures, settings, the server's command ---------------------------------------------------------------------------


def test_image_tokens_are_those_of_the_pictures() -> None:
    context, pad = contexts()[0], int(vlm().model.config.image_token_id)
    check_pictures(context, pad, "context 0")
    short = context.ids_T.copy()
    short[context.visuals[1].start] = 5
    with pytest.raises(ValueError, match=r"context 3, picture 2 \(picture [0-9a-f]+ .*\): 10 features for 9 image tokens"):
        check_pictures(dataclasses.replace(context, ids_T=short), pad, "context 3")
    more = context.ids_T.copy()
    more[-1] = pad
    with pytest.raises(ValueError, match="context 0: 1 image tokens belong to no picture"):
        check_pictures(dataclasses.replace(context, ids_T=more), pad, "context 0")
    clip = vlm().renderer.prompt([Message.user(Clip((picture(1), picture(2)), (0.0, 0.5)), "?")])
    with pytest.raises(ValueError, match=r"context 0, picture 1 \(clip .*takes pictures only; play videos with engine.kind: hf"):
        check_pictures(clip, pad, "context 0")


def test_settings_are_read_by_kind() -> None:
    read = pydantic.TypeAdapter(EnginePart).validate_python
    assert read({"kind": "hf"}) == HFEnginePart()
    assert isinstance(read({"kind": "vllm", "memory_frac": 0.3}), VLLMEnginePart)
    assert read({"kind": "vllm-server", "urls": ["http://a:1"], "folder": "/s"}).urls == ("http://a:1",)
    with pytest.raises(pydantic.ValidationError, match="kind"):
        read({"kind": "sglang"})
    with pytest.raises(pydantic.ValidationError, match="urls"):
        read({"kind": "vllm-server", "urls": [], "folder": "/s"})


def test_the_servers_command_has_what_the_client_relies_on() -> None:
    made = command("MODEL", max_pictures=3, options=["--port", "9", "--host", "0.0.0.0"])
    assert made[made.index("--model") + 1] == "MODEL"
    assert made[made.index("--logprobs-mode") + 1] == "processed_logprobs"
    assert json.loads(made[made.index("--limit-mm-per-prompt") + 1]) == {"image": 3, "video": 0}
    assert made[-4:] == ["--port", "9", "--host", "0.0.0.0"]
    assert environment({"A": "1", "VLLM_SERVER_DEV_MODE": "0"})["VLLM_SERVER_DEV_MODE"] == "1"
    with pytest.raises(SystemExit, match="MODEL"):
        main(["--port", "1"])


def test_logprobs_are_reported_from_before_the_cut() -> None:
    """The sampler's own part is played by a function that cuts in place, as vLLM's may."""
    logits = torch.tensor([[2.0, 1.0, 0.0]])
    calls = []

    def forward(logits: torch.Tensor, generators: object, k: object, p: object) -> tuple[torch.Tensor, torch.Tensor]:
        calls.append((k, p))
        if k is not None:
            logits[:, 1:] = -torch.inf
        return torch.tensor([0]), logits.log_softmax(-1)

    worker = WorkerExtension()
    cutter = type("Cutter", (), {})()
    cutter.forward = forward
    config = type("Config", (), {"logprobs_mode": "processed_logprobs", "dtype": torch.float32})
    worker.model_runner = type(
        "Runner", (), {"sampler": type("Sampler", (), {"topk_topp_sampler": cutter}), "model_config": config}
    )
    assert worker.report_logprobs_before_cut() == {"logprobs_mode": "processed_logprobs", "dtype": "torch.float32"}
    worker.report_logprobs_before_cut()
    want = logits.log_softmax(-1)
    torch.testing.assert_close(cutter.forward(logits.clone(), {}, torch.tensor([1]), None)[1], want)
    torch.testing.assert_close(cutter.forward(logits.clone(), {}, None, None)[1], want)
    assert len(calls) == 2
