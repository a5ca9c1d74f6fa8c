"""Launch scripts: what they would run, that a failing doctor stops them, and SIGTERM: training saves, its status is kept."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from foveate.train.config import RunConfig
from foveate.train.engine_settings import VLLMEnginePart
from foveate.train.recipes import load_any

LAUNCH = Path(__file__).resolve().parent.parent / "launch"
PAPER = LAUNCH.parent / "recipes" / "paper"
SCRIPTS = ("one_gpu.sh", "eight_gpus.sh", "nodes_torchrun.sh", "nodes_deepspeed.sh", "slurm.sbatch", "trainer_and_servers.sh")
TRAINER = f"""#!{sys.executable}
import os, pathlib, signal, sys, time
here = pathlib.Path(os.environ["NOTES"])
def stop(number, frame):
    time.sleep(0.5)  # a checkpoint is being written
    (here / "saved").write_text(str(number))
    sys.exit(130)
signal.signal(signal.SIGTERM, stop)
(here / "arguments").write_text(" ".join(sys.argv[1:]))
while not (here / "end").exists():
    time.sleep(0.02)
sys.exit(int((here / "end").read_text()))
"""

pytestmark = pytest.mark.skipif(sys.platform == "win32" or shutil.which("ps") is None, reason="needs bash and ps")


@pytest.fixture
def path(tmp_path: Path) -> Iterator[Path]:
    """A folder with fake programs: `foveate` trains until told to end, or fails as a doctor; `torchrun` starts two of it."""
    folder = tmp_path / "bin"
    folder.mkdir()

    def program(name: str, text: str) -> None:
        (folder / name).write_text(text, encoding="utf-8")
        (folder / name).chmod(0o755)

    program("trainer.py", TRAINER)
    program(
        "foveate",
        f"""#!/usr/bin/env bash
echo "foveate $*" >> "$NOTES/calls"
if [[ $1 == doctor ]]; then
    [[ -z ${{SICK:-}} ]] || echo "x torch too old"
    exit "${{SICK:-0}}"
fi
if [[ $1 == recipes ]]; then printf 'name: x\\nmodel:\\n  name: some/model\\n'; exit; fi
exec -a "foveate train" {sys.executable} {folder / "trainer.py"} "$@"
""",
    )
    # like the real one: what it starts has `foveate train` in its command line, and it ends with 1 whatever failed
    program(
        "torchrun",
        f"""#!/usr/bin/env bash
echo "torchrun $*" >> "$NOTES/calls"
trap 'echo "torchrun was told" >> "$NOTES/calls"' TERM
while [[ $1 != foveate ]]; do shift; done
bash -c 'exec -a "python -m foveate train" {sys.executable} {folder / "trainer.py"} "$@"' worker "$@" &
wait $! || exit 1
""",
    )
    yield folder
    (tmp_path / "end").write_text("0", encoding="utf-8")  # whatever a failed test has left running


def environment(path: Path, **more: str) -> dict[str, str]:
    return {**os.environ, "PATH": f"{path}:{os.environ['PATH']}", "NOTES": str(path.parent), "PYTHON": sys.executable, **more}


def dry(path: Path, script: str, *arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", str(LAUNCH / script), *arguments, "--dry-run"], env=environment(path, **more), capture_output=True, text=True,
        timeout=60,
    )  # fmt: skip


def lines(text: str) -> list[str]:
    return [line.removeprefix("[launch] ") for line in text.splitlines()]


def test_what_one_gpu_would_run(path: Path) -> None:
    done = dry(path, "one_gpu.sh", "tiny/vision_opd", "steps=3", "--run", "my runs/a", "--fresh")
    assert done.returncode == 0
    assert lines(done.stderr) == [
        "foveate doctor tiny/vision_opd steps=3 --run my\\ runs/a",
        "foveate train tiny/vision_opd steps=3 --run my\\ runs/a --fresh",
    ]
    assert not (path.parent / "calls").exists()  # nothing ran


def test_a_checkout_runs_what_make_has_set_up(path: Path, tmp_path: Path) -> None:
    checkout = tmp_path / "checkout"
    shutil.copytree(LAUNCH, checkout / "launch")
    (checkout / ".venv").mkdir()
    path.rename(checkout / ".venv/bin")
    run = ["bash", str(checkout / "launch/one_gpu.sh"), "x", "--dry-run"]
    shown = subprocess.run(run, env={"PATH": "/usr/bin:/bin"}, capture_output=True, text=True, timeout=60)
    assert lines(shown.stderr) == ["foveate doctor x", "foveate train x"]


def test_what_many_gpus_would_run(path: Path, tmp_path: Path) -> None:
    eight = dry(path, "eight_gpus.sh", "x", GPUS="4", SKIP_DOCTOR="1")
    assert lines(eight.stderr)[-1] == "torchrun --standalone --nproc_per_node 4 -m -- foveate train x"
    nodes = dry(path, "nodes_torchrun.sh", "x", "--run=/s/x", NODES="3", NODE_RANK="2", MASTER="a")
    assert lines(nodes.stderr)[-1] == (
        "torchrun --nnodes 3 --node_rank 2 --nproc_per_node 8 --rdzv_backend c10d --rdzv_id foveate --rdzv_endpoint a:29500 "
        "-m -- foveate train x --run /s/x"
    )
    hosts = tmp_path / "hosts"
    hosts.write_text("# machines\nnode0 slots=8\nnode1 slots=4\n", encoding="utf-8")
    deepspeed = dry(path, "nodes_deepspeed.sh", "x", "--run", "/s/x", HOSTFILE=str(hosts))
    assert lines(deepspeed.stderr)[-1] == (
        f"deepspeed --hostfile {hosts} --master_port 29500 --no_local_rank --module foveate train x --run /s/x"
    )
    slurm = dry(path, "slurm.sbatch", "x", "a=b", "--run", "/s/x", SLURM_JOB_NUM_NODES="2", MASTER="n0", SLURM_JOB_ID="7")
    assert slurm.returncode == 0, slurm.stderr
    assert any(line.startswith("srun ") and line.endswith("nodes_torchrun.sh x a=b --run /s/x") for line in lines(slurm.stderr))
    assert lines(slurm.stderr)[-1].startswith("torchrun --nnodes 2 --node_rank RANK --nproc_per_node 8")
    assert "--rdzv_endpoint n0:20007 -m -- foveate train x a=b --run /s/x" in lines(slurm.stderr)[-1]


@pytest.mark.parametrize("name", sorted(path.stem for path in PAPER.glob("*.yaml")))
def test_a_recipe_for_a_cluster_names_the_command_that_it_is_run_with(path: Path, name: str) -> None:
    (said,) = re.findall(r"^# On 8 GPUs.*: (launch/.*)$", (PAPER / f"{name}.yaml").read_text(encoding="utf-8"), re.MULTILINE)
    script, recipe, *changes = shlex.split(said)
    assert (script, recipe) == ("launch/eight_gpus.sh", f"paper/{name}")
    shown = lines(dry(path, "eight_gpus.sh", recipe, *changes, SKIP_DOCTOR="1").stderr)[-1]
    assert shown == f"torchrun --standalone --nproc_per_node 8 -m -- foveate train {recipe} {' '.join(changes)}"
    config = load_any(recipe, changes)
    for run in [config] if isinstance(config, RunConfig) else [stage.run for stage in config.stages]:
        large, one_by_one = re.search("-[78]B", run.model.name) is not None, "Qwen3.5" in run.model.name
        assert run.distributed.zero == (3 if large and not one_by_one else 2)
        if run.signals[0].kind == "sft" or run.data.video_dir is not None:
            assert run.engine.kind == "hf"
            continue
        assert isinstance(run.engine, VLLMEnginePart)
        assert run.engine.max_tokens > (run.limits.total_tokens or run.sampling.max_new_tokens)
        assert run.engine.max_pictures > (run.limits.pictures or run.sampling.max_turns - 1)


def test_servers_and_trainer_share_no_gpu(path: Path) -> None:
    done = dry(path, "trainer_and_servers.sh", "x", TRAINER_GPUS="0,1", SERVER_GPUS="2,3,4,5", TENSOR_PARALLEL="2", WEIGHTS="/w")
    shown = lines(done.stderr)
    assert shown[:2] == [
        f"CUDA_VISIBLE_DEVICES={gpus} {sys.executable} -m foveate.vlm.serve_vllm some/model --port {port} "
        "--tensor-parallel-size 2"
        for gpus, port in (("2,3", 8000), ("4,5", 8001))
    ]
    engine = r"engine=\{kind:\ vllm-server\,\ urls:\ \[http://127.0.0.1:8000\,http://127.0.0.1:8001\]\,\ folder:\ /w\}"
    assert shown[-1] == f"torchrun --standalone --nproc_per_node 2 -m -- foveate train x {engine}"
    twice = dry(path, "trainer_and_servers.sh", "x", TRAINER_GPUS="0,1", SERVER_GPUS="1,2")
    assert twice.returncode == 2
    assert "GPU 1 is in TRAINER_GPUS and in SERVER_GPUS" in twice.stderr


@pytest.mark.parametrize(
    ("script", "arguments", "more", "says"),
    [
        ("one_gpu.sh", (), {}, "no recipe"),
        ("one_gpu.sh", ("x", "y"), {}, "two recipes: x and y"),
        ("nodes_torchrun.sh", ("x",), {}, "set NODES, NODE_RANK"),
        ("nodes_torchrun.sh", ("x",), {"NODES": "2", "NODE_RANK": "0", "MASTER": "a"}, "--run FOLDER is needed"),
        ("nodes_deepspeed.sh", ("x",), {}, "set HOSTFILE"),
        ("nodes_deepspeed.sh", ("x",), {"HOSTFILE": "/dev/null/none"}, "no such file"),
        ("slurm.sbatch", ("x",), {}, "--run FOLDER is needed"),
        ("trainer_and_servers.sh", ("x",), {"TRAINER_GPUS": "0"}, "set TRAINER_GPUS and SERVER_GPUS"),
    ],
)
def test_mistakes_are_said(path: Path, script: str, arguments: tuple[str, ...], more: dict[str, str], says: str) -> None:
    done = dry(path, script, *arguments, **more)
    assert done.returncode == 2
    assert says in done.stderr


def test_a_hostfile_is_read_before_anything_starts(path: Path, tmp_path: Path) -> None:
    hosts = tmp_path / "hosts"
    hosts.write_text("node0 slots=8\nnode1 8\n", encoding="utf-8")
    done = dry(path, "nodes_deepspeed.sh", "x", "--run", "/s/x", HOSTFILE=str(hosts))
    assert done.returncode == 2
    assert "2:node1 8" in done.stderr


def test_a_red_line_stops_the_launch(path: Path) -> None:
    command = ["bash", str(LAUNCH / "one_gpu.sh"), "x", "a=1"]
    done = subprocess.run(command, env=environment(path, SICK="1"), capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert "x torch too old" in done.stdout
    assert "SKIP_DOCTOR=1" in done.stderr
    assert (path.parent / "calls").read_text(encoding="utf-8").splitlines() == ["foveate doctor x a=1"]


def started(path: Path, script: str, *arguments: str, **more: str) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        ["bash", str(LAUNCH / script), "x", *arguments],
        env=environment(path, **more),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # tests that run in the background have SIGINT ignored, and bash cannot trap what was ignored when it began
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    deadline = time.monotonic() + 30
    while not (path.parent / "arguments").exists():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return process


@pytest.mark.parametrize("script", ["one_gpu.sh", "eight_gpus.sh"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_reaches_training_and_its_status_is_kept(path: Path, script: str, number: signal.Signals) -> None:
    process = started(path, script, SKIP_DOCTOR="1")
    process.send_signal(number)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 130
    assert (path.parent / "saved").read_text(encoding="utf-8") == str(int(signal.SIGTERM))
    assert f"SIG{number.name.removeprefix('SIG')} is handed on to process" in said
    # the launcher would have killed its workers after 30 s
    assert "torchrun was told" not in (path.parent / "calls").read_text(encoding="utf-8")


def test_slurm_tells_the_steps_and_queues_again(path: Path) -> None:
    """srun becomes the script of the machine; scancel without --batch signals the steps; the status 130 means a checkpoint."""
    fakes = {
        "srun": 'echo $$ > "$NOTES/step"; export SLURM_NODEID=0; exec "${@:2}"',
        "scancel": 'echo "scancel $*" >> "$NOTES/calls"; kill -s TERM "$(cat "$NOTES/step")"',
        "scontrol": 'echo "scontrol $*" >> "$NOTES/calls"',
    }
    for name, text in fakes.items():
        (path / name).write_text(f"#!/usr/bin/env bash\n{text}\n", encoding="utf-8")
        (path / name).chmod(0o755)
    more = {"SKIP_DOCTOR": "1", "REQUEUE": "1", "SLURM_JOB_ID": "7", "MASTER": "n0"}
    process = started(path, "slurm.sbatch", "--run", "/s/x", **more)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=120)
    assert process.returncode == 130
    assert (path.parent / "saved").exists()
    calls = (path.parent / "calls").read_text(encoding="utf-8")
    assert "scancel --signal=TERM 7" in calls
    assert "scontrol requeue 7" in calls
    assert "torchrun was told" not in calls


def test_servers_end_with_training(path: Path) -> None:
    """The servers are stand-ins: python itself is, which notes what it was started with and sleeps."""
    server = path / "server"
    server.write_text(
        '#!/usr/bin/env bash\necho "$CUDA_VISIBLE_DEVICES $*" >> "$NOTES/servers"\nexec sleep 60\n', encoding="utf-8"
    )
    server.chmod(0o755)
    more = {"TRAINER_GPUS": "0", "SERVER_GPUS": "1,2", "PYTHON": str(server), "WEIGHTS": str(path / "weights")}
    process = started(path, "trainer_and_servers.sh", **more)
    (path.parent / "end").write_text("0", encoding="utf-8")
    _, said = process.communicate(timeout=30)  # it would last 60 s if the servers went on
    assert process.returncode == 0
    assert "ending 2 servers" in said
    started_servers = sorted((path.parent / "servers").read_text(encoding="utf-8").splitlines())
    assert started_servers == [
        "1 -m foveate.vlm.serve_vllm some/model --port 8000",
        "2 -m foveate.vlm.serve_vllm some/model --port 8001",
    ]
    assert "engine={kind: vllm-server" in (path.parent / "arguments").read_text(encoding="utf-8")


@pytest.mark.parametrize("status", [0, 3])
def test_the_status_of_training_is_kept(path: Path, status: int) -> None:
    process = started(path, "one_gpu.sh")
    (path.parent / "end").write_text(str(status), encoding="utf-8")
    process.communicate(timeout=120)
    assert process.returncode == status
    assert (path.parent / "arguments").read_text(encoding="utf-8") == "train x"


def test_every_script_says_what_it_needs(path: Path) -> None:
    for script in SCRIPTS:
        done = subprocess.run(
            ["bash", str(LAUNCH / script), "--help"], env=environment(path), capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 0
        assert f"launch/{script} RECIPE" in done.stdout
        assert os.access(LAUNCH / script, os.X_OK)


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed (apt-get install shellcheck)")
def test_shellcheck_finds_nothing() -> None:
    done = subprocess.run(
        ["shellcheck", "-x", "--severity=warning", ".ci/run", *[f"launch/{name}" for name in (*SCRIPTS, "common.sh")]],
        cwd=LAUNCH.parent, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
