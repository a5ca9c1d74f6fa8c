"""A teacher in the host's memory says what one on the device says, to the last bit, and its layers come one by one."""

from __future__ import annotations

import copy
import dataclasses
import gc
import os
import shutil
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import picture, scripted, view_of
from test_teacher_schedules import DISTILL, GRPO, logged, moved, path, recipe, share_taken
from wide_models import wide_random

from foveate.train import checkpoint, node_memory
from foveate.train.loop import collect, learn, train
from foveate.train.measure import sampled_logprobs
from foveate.train.node_memory import Mates
from foveate.train.ranks import Ranks
from foveate.train.run import Run
from foveate.train.teacher import Teacher
from foveate.train.teacher_host import Streamed
from foveate.train.teacher_settings import TeacherPart
from foveate.vlm.load import VLM, save, tiny_random
from foveate.vlm.records import Rollout, View

FAMILIES = ["qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_5"]
HOST = TeacherPart(weights="ema", rate=0.25, offload="host")
DEVICE = HOST.model_copy(update={"offload": "none"})


class Device:
    """A carrier to a make-believe device, which counts the bytes that are there. They are worth nothing until they are ready."""

    def __init__(self, ahead: bool = False) -> None:
        self.ahead, self.live, self.most = ahead, 0, 0
        self.sizes: list[int] = []
        self.waiting: list[tuple[torch.Tensor, torch.Tensor]] = []

    def begin(self, span: torch.Tensor) -> torch.Tensor:
        found = torch.full_like(span, 255)
        self.waiting.append((found, span))
        self.sizes.append(found.numel())
        self.live += found.numel()
        self.most = max(self.most, self.live)
        weakref.finalize(found.untyped_storage(), self._gone, found.numel())
        return found

    def _gone(self, size: int) -> None:
        self.live -= size

    def ready(self) -> None:
        for found, span in self.waiting:
            found.copy_(span)
        self.waiting.clear()


def streamed(vlm: VLM, device: Device | None = None, narrow: torch.dtype | None = None, moves: bool = True) -> VLM:
    made: Any = Streamed(vlm.model, vlm.device, moves=moves, narrow=narrow, carrier=device)
    return dataclasses.replace(vlm, model=made)


def pairs_of(vlm: VLM) -> list[tuple[Rollout, View]]:
    """Rollouts with a tool turn behind a prompt with two pictures."""
    view = view_of(picture(1), "what is this?", picture(2, 84, 56))
    return [(one, one.view) for one in (scripted(vlm, view, 1, index) for index in range(2))]


def scores(vlm: VLM, narrow: torch.dtype | None = None) -> list[Any]:
    with torch.autocast(vlm.device.type, narrow, enabled=narrow is not None):
        return sampled_logprobs(vlm, pairs_of(vlm), micro_tokens=8192, temperature=1.0)


# ---- scoring ------------------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:.*cannot share a prefix")
@pytest.mark.parametrize("narrow", [None, torch.bfloat16])
@pytest.mark.parametrize("family", [*FAMILIES, "tied"])
def test_it_says_what_the_model_says(family: str, narrow: torch.dtype | None) -> None:
    vlm = wide_random("qwen3_vl") if family == "tied" else tiny_random(family, seed=1)
    want = scores(vlm, narrow)
    for ahead in (False, True):
        assert scores(streamed(vlm, Device(ahead), narrow, moves=False), narrow) == want
    if narrow is not None:
        assert scores(vlm) != want, "the narrow type matters here"


def test_linear_weights_travel_in_the_type_of_the_arithmetic() -> None:
    """Half the bytes for them; norms, biases of norms and the rows of the embedding stay as they are."""
    vlm = tiny_random("qwen3_vl")
    wide, narrow = Device(), Device()
    scores(streamed(vlm, wide))
    scores(streamed(vlm, narrow, torch.bfloat16), torch.bfloat16)
    assert len(narrow.sizes) == len(wide.sizes)
    assert 0.5 < narrow.most / wide.most < 0.6


@pytest.mark.parametrize("ahead", [False, True])
def test_no_more_than_a_layer_or_two_are_on_the_device(ahead: bool) -> None:
    vlm = tiny_random("qwen3_vl", hidden=128, layers=8, vision_hidden=16, vocab_size=300)
    model: Any = vlm.model
    decoder = model.get_decoder()
    one = sum(weight.numel() * 4 for weight in decoder.layers[0].parameters())
    assert vlm.head_weight.numel() * 4 < one, "the layers decide"
    device = Device(ahead)
    teacher = streamed(vlm, device)
    scores(teacher)
    layers = 2 if ahead else 1
    assert layers * one <= device.most < layers * one + decoder.norm.weight.numel() * 4 + 64 * 32
    assert (device.live, device.waiting) == (0, [])
    assert {weight.numel() for module in teacher.model.modules() for weight in module.parameters()} == {0}
    vision = len(model.model.visual.blocks) + len(model.model.visual.deepstack_merger_list) + 1
    assert len(device.sizes) == (8 + 1) + vision + 1, "each once, and the head"


def test_the_rows_of_the_embedding_are_looked_up_in_the_host() -> None:
    vlm = tiny_random("qwen3_vl")
    device = Device()
    teacher = streamed(vlm, device)
    ids = torch.tensor([[3, 1, 3]])
    assert torch.equal(teacher.model.get_input_embeddings()(ids), vlm.model.get_input_embeddings()(ids))
    assert not device.sizes
    assert torch.equal(teacher.head_weight, vlm.head_weight)
    assert (len(device.sizes), device.live) == (1, 0)


@pytest.mark.filterwarnings("ignore:.*cannot share a prefix")
@pytest.mark.parametrize("family", FAMILIES)
def test_a_weight_that_was_not_fetched_is_an_error(family: str) -> None:
    """A single one of any layer or tower, a bias even."""
    vlm = tiny_random(family)
    teacher = streamed(vlm)
    model: Any = teacher.model
    units = list(model._units)
    for unit in units:
        places, unit.places = unit.places, unit.places[:-1]
        if places:
            with pytest.raises((RuntimeError, ValueError, IndexError)):
                scores(teacher)
        unit.places = places
    assert scores(teacher) == scores(vlm)


@pytest.mark.parametrize("ahead", [False, True])
def test_a_pass_that_fails_lets_go(ahead: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """And leaves nothing that was sent for before the weights moved."""
    vlm = tiny_random("qwen3_vl", layers=3)
    device = Device(ahead)
    teacher = streamed(vlm, device)
    broken = teacher.model.get_decoder().layers[1].mlp

    def fails(x: torch.Tensor) -> torch.Tensor:
        raise ValueError("out of luck")

    with monkeypatch.context() as patch:
        patch.setattr(broken, "forward", fails)
        with pytest.raises(ValueError, match="out of luck"):
            scores(teacher)
    gc.collect()
    assert (device.live, device.waiting) == (0, [])
    later = moved(vlm, 0.01)
    model: Any = teacher.model
    model.change(list(later.model.parameters()), torch.Tensor.copy_)
    assert scores(teacher) == scores(later)


def test_a_weight_that_nobody_would_fetch_is_refused() -> None:
    vlm = tiny_random("qwen3_vl")
    vlm.model.register_parameter("scale", torch.nn.Parameter(torch.ones(1)))
    with pytest.raises(ValueError, match="scale of this model belong to no tower; use offload: none"):
        streamed(vlm)


def test_it_goes_when_it_is_let_go_of() -> None:
    vlm = tiny_random("qwen3_vl")
    teacher = streamed(vlm)
    scores(teacher)
    gone = weakref.ref(teacher.model)
    gc.disable()
    try:
        del teacher
        assert gone() is None
    finally:
        gc.enable()


# ---- moving -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "wanted"),
    [
        ({"weights": "frozen"}, [0, 0]),
        ({"weights": "ema", "rate": 0.25, "every": 2, "reset_every": 5}, [0, 0.25, 0.25, 0.4375, 1, 1]),
        ({"weights": "sync", "every": 2}, [0, 1, 1]),
    ],
)
def test_it_moves_as_on_the_device(settings: dict[str, Any], wanted: list[float]) -> None:
    vlm = tiny_random("qwen3_vl", seed=1)
    host, device = (Teacher(vlm, TeacherPart(**settings, offload=where)) for where in ("host", "none"))
    assert isinstance(host.vlm.model, Streamed)
    assert path(vlm, host, len(wanted)) == path(vlm, device, len(wanted))
    assert path(vlm, host, 0) == []
    assert share_taken(vlm, host) == pytest.approx(wanted[-1], abs=1e-5)
    assert host.moved_at == device.moved_at
    assert scores(host.vlm) == scores(device.vlm)


def test_what_travels_moves_with_the_weights() -> None:
    vlm = wide_random("qwen3_vl")
    host, device = (Teacher(vlm, part, narrow=torch.bfloat16) for part in (HOST, DEVICE))
    path(vlm, host, 2)
    path(vlm, device, 2)
    assert scores(host.vlm, torch.bfloat16) == scores(device.vlm, torch.bfloat16) != scores(vlm, torch.bfloat16)


@pytest.mark.parametrize("narrow", [None, torch.bfloat16])
@pytest.mark.parametrize("tied", [False, True])
def test_its_state_is_that_of_a_teacher_on_the_device(tied: bool, narrow: torch.dtype | None, tmp_path: Path) -> None:
    vlm = wide_random("qwen3_vl") if tied else tiny_random("qwen3_vl", seed=1)
    both = {}
    for name, part in (("host", HOST), ("device", DEVICE)):
        teacher = Teacher(vlm, part, narrow=narrow)
        path(vlm, teacher, 3)
        torch.save(teacher.state_dict(), tmp_path / name)
        both[name] = torch.load(tmp_path / name, weights_only=True)
    assert list(both["host"]) == list(both["device"])
    assert all(torch.equal(both["host"][name], value) for name, value in both["device"].items())
    sizes = [(tmp_path / name).stat().st_size for name in both]
    assert sizes[0] == pytest.approx(sizes[1], rel=0.02), "the weights, and not the whole stretch of memory they lie in"
    for saved, part in (("host", DEVICE), ("device", HOST)):
        other = Teacher(vlm, part, narrow=narrow)
        other.load_state_dict(both[saved])
        assert other.moved_at == 3
        assert share_taken(vlm, other) == pytest.approx(0.578125, abs=1e-5)
        assert scores(other.vlm, narrow) == scores(teacher.vlm, narrow)
    with pytest.raises(ValueError, match="saved of another model"):
        Teacher(tiny_random("qwen3_vl", layers=3), HOST).load_state_dict(both["host"])


def test_a_teacher_of_another_make_cannot_follow() -> None:
    teacher = Teacher(tiny_random("qwen3_vl"), HOST)
    with pytest.raises(ValueError, match=r"cannot follow .* different models"):
        teacher.follow(tiny_random("qwen3_vl", layers=3), 1)


def test_the_student_is_left_alone() -> None:
    vlm = tiny_random("qwen3_vl")
    before = copy.deepcopy(vlm.model.state_dict())
    hooks = [(len(one._forward_hooks), len(one._forward_pre_hooks)) for one in vlm.model.modules()]
    teacher = Teacher(vlm, HOST)
    path(vlm, teacher, 1)
    assert all(torch.equal(one, before[name]) for name, one in vlm.model.state_dict().items())
    assert all(one.requires_grad for one in vlm.model.parameters())
    assert hooks == [(len(one._forward_hooks), len(one._forward_pre_hooks)) for one in vlm.model.modules()]


# ---- runs ---------------------------------------------------------------------------------------------------------------

VIEW = [{**DISTILL, "teacher": "tiny.crop"}]
ANCHOR = {"name": "crop", "view": "tiny.crop", "prompts": 1, "max_new_tokens": 8}
HELD = {**GRPO, "kl": "k3", "kl_weight": 0.1}
RUNS: dict[str, dict[str, Any]] = {
    "ema": {"teacher": {"weights": "ema", "rate": 0.3}, "signals": VIEW, "anchors": [ANCHOR], "log_rollouts": 2},
    "frozen": {"teacher": {}, "signals": VIEW, "model": {"name": "tiny", "compute": "bfloat16"}},
    "sync": {"teacher": {"weights": "sync", "every": 2}, "signals": VIEW},
    "trust_region": {"teacher": {"weights": "trust_region", "rate": 0.3}, "signals": VIEW},
    "reference": {"teacher": {"weights": "current"}, "signals": [HELD]},
}


def three(kind: str, offload: str, **changes: Any) -> Any:
    given = {**RUNS[kind], "steps": 3, "checkpoint": {"every": 1, "keep_last": 9}, **changes}
    return recipe(**{**given, "teacher": {**given["teacher"], "offload": offload}})


def numbers(folder: Path) -> list[dict[str, float]]:
    return [{name: value for name, value in row.items() if not name.startswith("time/")} for row in logged(folder)]


@pytest.mark.filterwarnings("ignore:step .*gradient norm")
@pytest.mark.parametrize("kind", list(RUNS))
def test_a_run_measures_the_same(kind: str, tmp_path: Path) -> None:
    for offload in ("none", "host"):
        train(three(kind, offload), tmp_path / offload)
    want = numbers(tmp_path / "none")
    assert numbers(tmp_path / "host") == want
    assert len(want) == 3
    assert all(row["optim/grad_norm"] > 0 for row in want)
    if kind == "ema":
        written = [(tmp_path / offload / "rollouts" / "step_000001.jsonl").read_text() for offload in ("none", "host")]
        assert written[0] == written[1], "the looks of the teacher at single tokens too"


def test_a_run_says_what_its_teacher_needs(tmp_path: Path) -> None:
    """The arithmetic, and where the weights of a KL's reference lie."""
    sizes = []
    for kind in ("bfloat16", "float32"):
        run = Run(three("frozen", "host", model={"name": "tiny", "compute": kind}), tmp_path / kind)
        assert run.teacher is not None
        model: Any = run.teacher.vlm.model
        assert isinstance(model, Streamed)
        sizes.append(model.num_bytes)
    assert 0.5 < sizes[0] / sizes[1] < 0.75
    held = Run(three("reference", "host"), tmp_path / "held")
    assert held.teacher is not None
    assert held.reference is not None
    assert held.teacher.vlm is held.vlm
    assert isinstance(held.reference.vlm.model, Streamed)


def test_the_head_comes_once_for_all_streams_of_a_pass(tmp_path: Path) -> None:
    run = Run(three("ema", "host"), tmp_path)
    assert run.teacher is not None
    model: Any = run.teacher.vlm.model
    model._carrier = device = Device()
    _, signals = collect(run, 0)
    assert {one.stream for one in signals} == {"distill", "anchor:crop"}
    assert not device.sizes, "sampling asks no teacher"
    learn(run, signals)
    assert device.sizes.count(run.vlm.head_weight.numel() * 4) == 1


@pytest.mark.filterwarnings("ignore:step .*gradient norm")
@pytest.mark.parametrize("lora", [None, {"rank": 4}])
def test_a_teacher_from_elsewhere(lora: dict[str, int] | None, tmp_path: Path) -> None:
    """In bfloat16 arithmetic; of a student with adapters it is a second model too."""
    if lora is not None:
        pytest.importorskip("peft")
    student = Run(three("frozen", "none"), tmp_path / "run").vlm
    save(moved(student, 0.01), tmp_path / "other")
    for offload in ("none", "host"):
        given = {"weights": "frozen", "path": str(tmp_path / "other")}
        model = {"name": "tiny", "compute": "bfloat16", "lora": lora}
        train(three("frozen", offload, teacher=given, model=model), tmp_path / offload)
    assert numbers(tmp_path / "host") == numbers(tmp_path / "none")
    assert numbers(tmp_path / "host")[0]["loss/total"] > 0.01, "it is another one"


@pytest.mark.filterwarnings("ignore:step .*gradient norm")
@pytest.mark.parametrize(("first", "then"), [("none", "host"), ("host", "none")])
def test_a_run_goes_on_with_the_teacher_elsewhere(first: str, then: str, tmp_path: Path) -> None:
    train(three("ema", first), tmp_path / "whole")
    shutil.copytree(tmp_path / "whole", tmp_path / "cut")
    for step in (2, 3):
        shutil.rmtree(checkpoint.folder_of(tmp_path / "cut", step))
    (tmp_path / "cut" / "summary.json").unlink()
    train(three("ema", then), tmp_path / "cut")
    assert numbers(tmp_path / "cut") == numbers(tmp_path / "whole")
    kept = [torch.load(checkpoint.folder_of(tmp_path / one, 3) / "trainer" / "teacher.pt") for one in ("cut", "whole")]
    assert all(torch.equal(kept[0][name], value) for name, value in kept[1].items())


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"sampling": {"max_new_tokens": 8, "player": "teacher"}}, "for every token; use offload: none"),
        ({"model": {"name": "tiny", "lora": {}}}, "the student's own base .* remove teacher.offload"),
        ({"teacher": {"weights": "current", "accept_collapse": True}}, "the teacher is the student.*remove teacher.offload"),
    ],
)
def test_what_it_makes_no_sense_with_is_refused(changes: dict[str, Any], why: str) -> None:
    with pytest.raises(ValueError, match=f"teacher.offload: host: .*{why}"):
        three("frozen", "host", **changes)
    three("frozen", "none", **changes)
    three("frozen", "host", model={"name": "tiny", "lora": {}}, teacher={"path": "elsewhere"})


# ---- memory of several processes (two real ones: tests/test_distributed.py) ---------------------------------------------


class Second(Ranks):
    """The second rank of a machine, whose first has offered what is scripted."""

    def gather(self, mine: Any) -> list[Any]:
        return [OFFERS.pop(0)(mine), mine]


OFFERS: list[Any] = []


def second(offer: tuple[int, int, bytes], size: int = 4096) -> tuple[Any, Mates]:
    OFFERS[:] = [lambda mine: mine, lambda mine: offer, lambda mine: True]
    return node_memory.node_memory(size, Second(1, 2))


def test_another_ranks_memory_is_opened_and_checked() -> None:
    memory, file = node_memory._made(4096)
    assert memory is not None
    mark = memory[:16]
    assert len(mark) == 16
    assert mark != node_memory._made(4096)[0][:16]  # type: ignore[index]
    mine, mates = second((os.getpid(), file, mark))
    assert (mates.place, mates.count) == (1, 2)
    assert [*mates.mine(5)] == [1, 3]
    memory[100] = 7
    assert mine[100] == 7
    for offer, size in (
        ((os.getpid(), file, b"x" * 16), 4096),  # that number is somebody else's here
        ((os.getpid(), file, mark), 1 << 20),  # too short
        ((2**22 + 1, file, mark), 4096),  # nobody
        ((os.getpid(), -1, b""), 4096),  # the first has none
    ):
        own, mates = second(offer, size)
        assert (mates.place, mates.count, len(own)) == (0, 1, size)
    os.close(file)


class First(Ranks):
    def gather(self, mine: Sequence[Any]) -> list[Any]:
        return [mine, OFFERS.pop(0)(mine)]


def test_the_first_says_that_memory_cannot_be_shared() -> None:
    OFFERS[:] = [lambda mine: mine, lambda mine: mine, lambda mine: False]
    before = len(os.listdir("/proc/self/fd"))
    with pytest.warns(UserWarning, match="2 ranks of this machine cannot open each other's memory"):
        _, mates = node_memory.node_memory(4096, First(0, 2))
    assert mates.count == 1
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) <= before


def test_nobody_reads_while_weights_move(monkeypatch: pytest.MonkeyPatch) -> None:
    """All ranks meet before and after, and each writes its share; a second one has the other weights."""
    seen: list[str] = []

    class Counting(Ranks):
        def gather(self, mine: Any) -> list[Any]:
            seen.append("meet")
            return [mine] * self.size

    vlm = tiny_random("qwen3_vl")
    model: Any = Teacher(vlm, HOST).vlm.model
    weights = list(model.parameters())
    for place in range(2):
        model._mates = Mates(Counting(place, 2), place, 2)
        seen.clear()
        model.change(weights, lambda mine, other: seen.append(str([one is mine for one in weights].index(True))))
        assert seen == ["meet", *map(str, range(place, len(weights), 2)), "meet"]


def test_ranks_of_other_machines_have_their_own() -> None:
    OFFERS[:] = [lambda mine: "another machine", lambda mine: (1, -1, b""), lambda mine: True]
    memory, mates = node_memory.node_memory(4096, First(0, 2))
    assert (mates.place, mates.count, len(memory)) == (0, 1, 4096)


# ---- on the device ------------------------------------------------------------------------------------------------------


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore:.*cannot share a prefix")
@pytest.mark.parametrize("family", [*FAMILIES, "tied"])
def test_layers_come_to_a_gpu(family: str) -> None:
    """Pinned, on a stream of their own, and the same numbers; an average made on the host is that of the device."""
    vlm = wide_random("qwen3_vl") if family == "tied" else tiny_random(family, seed=1, layers=6)
    module: Any = vlm.model
    module.cuda()
    host, device = (Teacher(vlm, part, narrow=torch.bfloat16) for part in (HOST, DEVICE))
    model: Any = host.vlm.model
    assert model._bytes.is_pinned()
    assert {one.device.type for one in model.parameters()} == {"cpu"}
    for _ in range(2):
        assert scores(host.vlm, torch.bfloat16) == scores(device.vlm, torch.bfloat16)
    assert not model._sent
    path(vlm, host, 2)
    path(vlm, device, 2)
    for mine, theirs in zip(model.parameters(), device.vlm.model.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs.cpu(), rtol=1e-6, atol=1e-7)


@pytest.mark.gpu
def test_a_pass_on_a_gpu_holds_two_layers() -> None:
    vlm = tiny_random("qwen3_vl", hidden=512, layers=12, vocab_size=300)
    module: Any = vlm.model
    module.cuda()
    one = sum(weight.numel() * 4 for weight in module.get_decoder().layers[0].parameters())
    teacher = streamed(vlm)
    scores(teacher)
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    scores(teacher)
    assert torch.cuda.max_memory_allocated() - before < 4 * one
    assert torch.cuda.memory_allocated() == before
