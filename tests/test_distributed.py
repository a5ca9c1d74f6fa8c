"""One run by several ranks is the run of one process: losses, norms, metrics, checkpoints. Real processes over gloo."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from foveate.train import checkpoint
from foveate.train.config import RunConfig
from foveate.train.distributed import Spread, build_spread, my_share
from foveate.train.lockstep import Needs, idle, in_step
from foveate.train.lora import load_student
from foveate.train.optim import GradGuard, NotFiniteError
from foveate.train.ranks import Ranks, joined
from foveate.train.recipes import load_recipe
from foveate.train.zero import ZeroOptimizer
from foveate.vlm.images import Picture
from foveate.vlm.load import load, tiny_random
from foveate.vlm.messages import Message
from foveate.vlm.records import Rollout, Signal, StopReason, Turn, View
from foveate.vlm.render import Renderer

ROOT = Path(__file__).resolve().parent.parent
WORKER = Path(__file__).with_name("distributed_worker.py")
deepspeed = pytest.mark.skipif(
    importlib.util.find_spec("deepspeed") is None, reason="deepspeed is not installed (DS_BUILD_OPS=0 pip install deepspeed)"
)
HAVE_ZERO = importlib.util.find_spec("deepspeed") is not None
HAVE_PEFT = importlib.util.find_spec("peft") is not None
HAVE_BITS = importlib.util.find_spec("bitsandbytes") is not None
ADAPTED = ("lora-0", "dora-0", "mixedlora-0", *(("qlora-0",) if HAVE_BITS else ())) if HAVE_PEFT else ()
ADAPTED_ZERO = ("lora-1", "dora-2", "mixedlora-2", "lora-3", "dora-3", "mixedlora-3") if HAVE_PEFT and HAVE_ZERO else ()
ADAPTED_ZERO = (*ADAPTED_ZERO, "qlora-2") if ADAPTED_ZERO and HAVE_BITS else ADAPTED_ZERO
adapters = pytest.mark.skipif(not ADAPTED_ZERO, reason="PEFT or deepspeed is not installed (pip install 'foveate[train]')")
PLAIN = ("opd-0", "mixed-0", "grpo-0", *ADAPTED)
ZERO = (
    "opd-1", "opd-2", "opd-3", "mixed-2", "mixed-3", "grpo-2", "current-3", "offload-2", "offload-3", "host-3"
) if HAVE_ZERO else ()  # fmt: skip
ZERO = (*ZERO, *ADAPTED_ZERO)


def start(ranks: int, folder: Path, cases: Sequence[str]) -> subprocess.Popen[str]:
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(ranks)] if ranks > 1 else []
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
    return subprocess.Popen(
        [sys.executable, *launcher, str(WORKER), str(folder), *cases],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=env,
    )  # fmt: skip


def finish(process: subprocess.Popen[str], seconds: float = 240) -> None:
    try:
        said = process.communicate(timeout=seconds)[0]
    except subprocess.TimeoutExpired:
        process.kill()
        pytest.fail(f"ranks hang: {process.communicate()[0][-3000:]}")
    if process.returncode:
        # the first traceback is the cause; those after it are of ranks that waited for the one that failed
        pytest.fail(said[max(said.find("Traceback"), 0) :][:4000])


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The folders of one process and of two ranks."""
    one, two = tmp_path_factory.mktemp("one"), tmp_path_factory.mktemp("two")
    merge = ["merge-0"] if HAVE_PEFT else []
    cases = ["pictures-0", *PLAIN, *merge, "host-0", "copy-0", *ZERO]
    processes = start(1, one, [*PLAIN, *merge, "current-0"]), start(2, two, cases)
    for process in processes:
        finish(process)
    return one, two


def rows(folder: Path) -> list[dict[str, float]]:
    """What was measured step by step."""
    path = folder / "steps.json"
    if path.exists():
        return json.loads(path.read_text())
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [{name: value for name, value in json.loads(line).items() if not name.startswith("time/")} for line in lines]


def same(have: list[dict[str, float]], want: list[dict[str, float]]) -> None:
    assert [set(row) for row in have] == [set(row) for row in want]
    for mine, theirs in zip(have, want, strict=True):
        for name, value in theirs.items():
            assert mine[name] == pytest.approx(value, rel=1e-5, abs=1e-5), (name, mine, theirs)


@pytest.mark.parametrize("case", [*PLAIN, "host-0", *(pytest.param(one, marks=deepspeed) for one in ZERO or ("opd-2", "opd-3"))])
def test_two_ranks_measure_what_one_process_measures(runs: tuple[Path, Path], case: str) -> None:
    one, two = runs
    kind = case.rsplit("-", 1)[0]
    want = rows(one / f"{'opd' if kind in ('offload', 'host') else kind}-0")
    same(rows(two / case), want)
    assert len({row["loss/total"] for row in want if "loss/total" in row}) >= 3, "the run must learn something at every step"


def test_only_rank_0_writes_and_the_rollouts_are_the_same(runs: tuple[Path, Path]) -> None:
    one, two = runs
    for name in ("rollouts/step_000001.jsonl", "config.yaml"):
        mine, theirs = ((folder / "opd-0" / name).read_text() for folder in (two, one))
        if name.endswith("yaml"):
            assert mine == theirs
            continue
        texts = [[[turn["ids"] for turn in json.loads(line)["turns"]] for line in text.splitlines()] for text in (mine, theirs)]
        assert texts[0] == texts[1]
    assert len((two / "opd-0" / "starts.jsonl").read_text().splitlines()) == 1


def test_a_teacher_in_the_hosts_memory_is_held_once(runs: tuple[Path, Path]) -> None:
    """What one rank writes the other reads, and both have found the student's weights there."""
    found = json.loads((runs[1] / "copy-0" / "found.json").read_text())
    assert found == {"marks": [100.0, 101.0], "same": [True, True]}


def test_pixels_go_where_they_are_read(runs: tuple[Path, Path]) -> None:
    """By hand: a mirrored zoom has 3 x 40 x 30 = 3,600 bytes. Photographs and zooms are made from files, and nothing is sent."""
    folder = runs[1] / "pictures-0"
    photos = [np.asarray(Image.open(folder / f"photo_{place}.png")) for place in range(2)]
    seen = [[photo, photo[5:35, 10:50], photo[5:35, 10:50][:, ::-1]] for photo in photos]
    want = [[hashlib.sha256(np.ascontiguousarray(one).tobytes()).hexdigest() for one in own] for own in seen]
    black = hashlib.sha256(bytes(3600)).hexdigest()
    assert [json.loads((folder / f"rank_{rank}.json").read_text()) for rank in range(2)] == [
        [
            ["gathered", [], 0],
            ["said by rank 0", [want[1][2], black], 3600],  # its own is black, the other rank 1's
            ["again", [*want[1], *want[0]], 7200],
        ],
        [
            ["gathered", [], 0],
            ["of rank 0", want[0], 3600],
            ["said by rank 0", [want[1][2], black], 7200],
            ["again", [*want[1], *want[0]], 7200],
        ],
    ]


def keep_first(source: Path, target: Path) -> None:
    """A run as it was when it was killed after its first step."""
    shutil.copytree(source, target)
    for step in checkpoint.steps_saved(target):
        if step != 1:
            shutil.rmtree(checkpoint.folder_of(target, step))


@deepspeed
def test_a_run_goes_on_under_another_number_of_ranks(runs: tuple[Path, Path], tmp_path: Path) -> None:
    """Saved after step 1 by two ranks (ZeRO-3), gone on with by one process and by three ranks; and the other way round."""
    one, two = runs
    keep_first(two / "opd-3", tmp_path / "alone" / "opd-0")
    keep_first(two / "opd-3", tmp_path / "three" / "opd-2")
    keep_first(one / "opd-0", tmp_path / "three" / "opd-3")
    alone, three = ["opd-0"], ["opd-2", "opd-3"]
    if ADAPTED_ZERO:  # an adapter beside its base is put where it was, and is not counted twice
        keep_first(two / "dora-3", tmp_path / "alone" / "dora-0")
        keep_first(one / "lora-0", tmp_path / "three" / "lora-3")
        alone, three = [*alone, "dora-0"], [*three, "lora-3"]
    processes = start(1, tmp_path / "alone", alone), start(3, tmp_path / "three", three)
    for process in processes:
        finish(process)
    for folder in (*(tmp_path / "alone" / case for case in alone), *(tmp_path / "three" / case for case in three)):
        assert [json.loads(line)["after_step"] for line in (folder / "starts.jsonl").read_text().splitlines()] == [0, 1]
        same(rows(folder), rows(one / f"{folder.name[:-2]}-0"))


@deepspeed
def test_checkpoints_of_shards_are_those_of_one_process(runs: tuple[Path, Path]) -> None:
    one, two = runs
    from transformers import AutoModelForImageTextToText

    def weights(run: Path) -> dict[str, torch.Tensor]:
        return AutoModelForImageTextToText.from_pretrained(checkpoint.folder_of(run, 3), dtype=torch.float32).state_dict()

    def moments(run: Path) -> dict[str, Any]:
        kept = torch.load(checkpoint.folder_of(run, 3) / "trainer" / "optimizer.pt", weights_only=True)["optimizer"]
        return {**kept["parts"][0]["state"], "steps_done": kept["steps_done"], "names": kept["names"]}

    want, state = weights(one / "opd-0"), moments(one / "opd-0")
    for case in ("opd-2", "opd-3"):
        have = weights(two / case)
        assert have.keys() == want.keys()
        assert max(float((have[name] - want[name]).abs().max()) for name in want) < 2e-5
        found = moments(two / case)
        assert found["names"] == state["names"]
        assert found["steps_done"] == 3
        for place in range(len(found) - 2):
            assert float(found[place]["step"]) == 3
            for key in ("exp_avg", "exp_avg_sq"):
                torch.testing.assert_close(found[place][key], state[place][key], rtol=1e-3, atol=1e-5)


@adapters
@pytest.mark.parametrize("case", ["lora-3", "dora-2", "dora-3"])
def test_checkpoints_of_adapters_are_those_of_one_process(runs: tuple[Path, Path], case: str) -> None:
    one, two = (checkpoint.folder_of(folder / name, 3) for folder, name in zip(runs, (f"{case[:-2]}-0", case), strict=True))
    want, have = load_file(one / "adapter_model.safetensors"), load_file(two / "adapter_model.safetensors")
    assert {name: one.shape for name, one in have.items()} == {name: one.shape for name, one in want.items()}
    assert max(float((have[name] - want[name]).abs().max()) for name in want) < 1e-3, "no step is larger than the rate, 0.005"
    assert max(float(one.abs().max()) for name, one in want.items() if "lora_B" in name) > 0.005, "they have moved from 0"
    files = [torch.load(folder / "trainer" / "optimizer.pt", weights_only=True) for folder in (one, two)]
    state, found = (kept["optimizer"]["parts"][0]["state"] for kept in files)
    assert {place: moments["exp_avg"].shape for place, moments in found.items()} == {
        place: moments["exp_avg"].shape for place, moments in state.items()
    }
    assert sum(moments["exp_avg"].numel() for moments in found.values()) == sum(one.numel() for one in want.values())
    if case.startswith("dora"):
        teachers = [torch.load(folder / "trainer" / "teacher.pt", weights_only=True) for folder in (one, two)]
        assert teachers[0].keys() == teachers[1].keys()
        assert max(float((teachers[1][name] - value).abs().max()) for name, value in teachers[0].items()) < 1e-3


@adapters
@pytest.mark.parametrize("case", ["mixed-3", "mixedlora-0", "mixedlora-2", "mixedlora-3"])
def test_an_engine_gets_whole_merged_weights(runs: tuple[Path, Path], case: str) -> None:
    """Against the checkpoint of the same moment, read and merged by a process of its own."""
    one, two = runs
    taken = load_file(two / case / "synced.safetensors")
    vlm = load(checkpoint.folder_of(two / case, 0), merged=True)
    want = dict(vlm.model.named_parameters(remove_duplicate=False))
    assert taken.keys() == want.keys() == load_file(one / f"{case[:-2]}-0" / "synced.safetensors").keys()
    for name, tensor in taken.items():
        torch.testing.assert_close(tensor, want[name].detach(), rtol=1e-6, atol=1e-6, msg=name)
    if "lora" in case:
        assert rows(two / case)[-1]["frozen"] > 60
        assert rows(two / case)[-1]["moved"] == 0
        base = load("tiny").model.state_dict()
        assert sum(not torch.allclose(tensor, base[name], atol=1e-4) for name, tensor in taken.items()) > 20, "merged"


@adapters
def test_rank_0_alone_merges_an_adapter_of_other_settings(runs: tuple[Path, Path]) -> None:
    one, two = (folder / "merge-0" for folder in runs)
    assert (two / "merges.txt").read_text() == (one / "merges.txt").read_text() == "rank 0\n"
    same(rows(two), rows(one))
    base, adapter = load(two / "base"), load(two.with_name("lora-0"), merged=True)
    for name, tensor in base.model.named_parameters():
        torch.testing.assert_close(tensor, adapter.model.get_parameter(name), rtol=0, atol=0, msg=name)


def test_sigterm_saves_a_checkpoint_and_stops_all_ranks(tmp_path: Path) -> None:
    process = start(2, tmp_path, ["stop-0"])
    metrics = tmp_path / "stop-0" / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while not metrics.exists() and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    said = process.communicate(timeout=60)[0]
    assert said.count("run the same command again to go on") >= 1, said[-3000:]
    last = json.loads(metrics.read_text().splitlines()[-1])["step"]
    assert checkpoint.steps_saved(tmp_path / "stop-0")[-1] == last
    assert 1 <= last < 400


# ---- the parts ------------------------------------------------------------------------------------------------------------


def signal_of(group: str, index: int, words: int) -> Signal:
    turn = Turn((5,) * words, (-1.0,) * words, "", StopReason.ANSWERED)
    rollout = Rollout(group, group, index, View("student", (Message.user("?"),)), (turn,), StopReason.ANSWERED)
    return Signal(rollout, ce_weights_NK=((1.0,) * words,), stream="sft")


def test_groups_are_dealt_whole_and_evenly() -> None:
    signals = [signal_of("a", 0, 2), signal_of("b", 0, 5), signal_of("a", 1, 2), signal_of("c", 0, 3), signal_of("d", 0, 1)]
    shares = [[(one.rollout.group_id, one.rollout.index) for one in my_share(signals, Ranks(rank, 2))] for rank in range(2)]
    # b (5) to rank 0, a (4) to rank 1, c (3) to rank 1 with 4 against 5, d (1) to rank 0 with 5 against 7
    assert shares == [[("b", 0), ("d", 0)], [("a", 0), ("a", 1), ("c", 0)]]


class Scripted(Ranks):
    """Ranks whose others have said what they have."""

    def gather(self, mine: Any) -> list[Any]:
        return [mine, *OTHERS]


OTHERS: list[list[Needs]] = []


@pytest.fixture(scope="module")
def renderer() -> Renderer:
    return tiny_random("qwen2_5_vl").renderer


def test_what_a_rank_lacks_is_made_up_by_an_idle_sequence(renderer: Renderer) -> None:
    OTHERS[:] = [[Needs(), Needs(pictures=True), Needs(kd="distill", teacher_pictures=True)]]
    mine = idle(Needs(), renderer)
    leveled = in_step(Scripted(0, 2), renderer)([[[mine]], [[mine]]])
    assert [len(cut) for cut in leveled] == [1, 2, 1]
    assert [bool(one.rendered.prompt.visuals) for one in leveled[1][1]] == [True]
    (alone,) = leveled[2][0]
    assert not alone.rendered.prompt.visuals
    assert alone.signals[0].stream == "distill"
    assert alone.signals[0].kd_weights_NK == ((0.0,),)
    assert isinstance(alone.signals[0].teacher_view.visuals[0], Picture)


def test_a_norm_from_elsewhere_is_guarded_too() -> None:
    guard = GradGuard(on_spike="stop")
    assert guard.check(1.0, [], 1.0, norm=3.0) == (3.0, True)
    with pytest.raises(NotFiniteError, match="gradient norm nan"):
        guard.check(1.0, [], 1.0, norm=float("nan"))


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        (["distributed.zero=2", "optimizer.name=muon"], "Muon orthogonalises whole matrices"),
        (["distributed.zero=2", "distributed.offload=all"], "use zero: 3 or optimizer"),
        (["distributed.offload=optimizer"], "set distributed.zero"),
    ],
)
def test_settings_that_mean_nothing_are_refused(changes: list[str], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        load_recipe("tiny/grpo", changes)


def test_trained_weights_of_two_types_are_refused_under_zero(tmp_path: Path) -> None:
    pytest.importorskip("peft")

    def spread(*changes: str) -> Spread:
        config = load_recipe("tiny/sft", ["optimizer.name=adamw", "distributed.zero=2", *changes])
        return build_spread(config, load_student(config, tmp_path), Ranks(0, 2), 4)

    half, lora = "model.dtype=bfloat16", "model.lora.targets=[language]"
    with pytest.raises(ValueError, match=r"these are bfloat16 and float32 .*use model.dtype: float32"):
        spread(half, lora, "model.lora.modules_to_save=[merger]")
    # DeepSpeed would cast adapters to bfloat16, and a checkpoint would keep them so
    for changes, cast in (((half,), True), ((half, lora), False), ((lora, "model.lora.modules_to_save=[merger]"), False)):
        optimizer = spread(*changes).optimizer
        assert isinstance(optimizer, ZeroOptimizer)
        assert optimizer._engine_config()["bf16"]["enabled"] is cast


def test_a_launcher_that_says_half_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    joined.cache_clear()
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(ValueError, match="WORLD_SIZE is 2 but RANK"):
        joined()
    joined.cache_clear()


def test_a_process_on_its_own_needs_none_of_it() -> None:
    code = (
        "import sys\nfrom foveate.train.run import Run\nfrom foveate.train.recipes import load_recipe\nfrom pathlib import Path\n"
        "import tempfile\nimport distributed_worker as worker\n"
        "worker.main(Path(tempfile.mkdtemp()), ['mixed-0'])\n"
        "assert 'deepspeed' not in sys.modules, 'imported'\n"
    )
    env = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}", "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-c", code], check=True, env=env, timeout=120)
    assert isinstance(load_recipe("tiny/grpo", []), RunConfig)
