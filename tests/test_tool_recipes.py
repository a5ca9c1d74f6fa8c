"""Every recipe with tools runs as it stands: two steps on the embedded model, with fewer prompts."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from PIL import Image
from sklearn.datasets import load_sample_image

from foveate.train.config import RunConfig
from foveate.train.experience import shuffled
from foveate.train.loop import train
from foveate.train.recipes import load_any, load_recipe, recipe_path
from foveate.vlm.load import save, tiny_random
from foveate.vlm.messages import Message
from foveate.vlm.records import Group, Reward, Rollout, Sample, StopReason, View

HERE = recipe_path("deepeyes").parent
NAMES = sorted(path.stem for path in HERE.glob("*.yaml") if isinstance(load_any(path), RunConfig))  # those without stages
SMALL = ["steps=2", "prompts=4", "eval=null", "checkpoint.best_view=null", "loggers=[]", "threads=1", "checkpoint.every=10"]


def test_the_recipes_of_the_methods_are_there() -> None:
    methods = {"deepeyes", "v_toolrl", "grit", "vilasr", "frame_thinker", "grpo", "tool_opd"}
    assert methods <= set(NAMES)
    papers = {path.stem for path in (recipe_path("deepeyes").parent / "paper").glob("*.yaml")}
    assert methods <= papers, "each names its settings for a Qwen-VL"


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.filterwarnings("ignore:step .*gradient norm")
def test_a_recipe_trains_as_it_stands(name: str, tmp_path: Path) -> None:
    config = load_recipe(name)
    fewer = [f"anchors.{place}.{key}" for place in range(len(config.anchors)) for key in ("prompts=1", "pool=0")]
    rollouts = [] if config.rollouts == 1 else ["rollouts=2"]
    train(load_recipe(name, [*SMALL, *fewer, *rollouts]), tmp_path)
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    steps = [row for row in rows if "loss/total" in row]
    assert len(steps) == 2
    assert all(math.isfinite(row["loss/total"]) and math.isfinite(row["optim/grad_norm"]) for row in steps)
    if config.signals[0].kind in ("sft", "distill"):
        assert any(row["optim/grad_norm"] > 0 for row in steps)


def test_the_control_deals_rewards_out_over_groups(tmp_path: Path) -> None:
    """The same rewards, at other rollouts, the same ones when run again."""
    rows = []
    for place, options in enumerate(([], ["signals.0.shuffle=true"], ["signals.0.shuffle=true"])):
        train(load_recipe("deepeyes", [*SMALL, "prompts=6", "steps=1", *options]), tmp_path / str(place))
        rows.append(json.loads((tmp_path / str(place) / "metrics.jsonl").read_text().splitlines()[0]))
    plain, shuffled, again = rows
    assert plain["reward/total"] == pytest.approx(shuffled["reward/total"])
    assert plain["optim/grad_norm"] != shuffled["optim/grad_norm"]
    assert shuffled["optim/grad_norm"] == again["optim/grad_norm"]


def test_no_group_keeps_its_own_rewards() -> None:
    view = View("student", (Message.user("q"),))
    groups = [
        Group(
            Sample(id=f"s{g}", question="q"),
            tuple(Rollout(f"s{g}", f"g{g}", k, view, (), StopReason.ANSWERED, reward=Reward(10.0 * g + k)) for k in range(3)),
        )
        for g in range(5)
    ]
    for seed in range(20):
        dealt = [[one.reward.total for one in group.rollouts if one.reward] for group in shuffled(groups, seed)]
        assert sorted(dealt) == [[10.0 * g + k for k in range(3)] for g in range(5)]
        assert all(row[0] != 10.0 * g for g, row in enumerate(dealt))


@pytest.mark.parametrize(
    ("name", "family"),
    [
        ("deepeyes", "qwen2_5_vl"),
        ("v_toolrl", "qwen2_vl"),
        ("grit", "qwen2_5_vl"),
        ("vilasr", "qwen2_5_vl"),
        ("tool_opd", "qwen3_vl"),
    ],
)
def test_the_settings_for_a_large_model_run_on_a_random_one_of_its_family(name: str, family: str, tmp_path: Path) -> None:
    """Prompts, tools, coordinates and rewards of recipes/paper, with a photograph and a small model in place of the large one."""
    save(tiny_random(family, seed=0), tmp_path / "model")
    Image.fromarray(load_sample_image("china.jpg")).save(tmp_path / "china.jpg")
    Image.fromarray(load_sample_image("china.jpg")[100:200, 100:200]).save(tmp_path / "crop.png")
    box = {"boxes_px_xyxy": [[100, 100, 200, 200]], "teacher_images": ["crop.png"]}
    row = {"image": "china.jpg", "question": "What colour is the wall?", "answer": "red", **box}
    (tmp_path / "data.jsonl").write_text("".join(json.dumps({**row, "id": f"q{k}"}) + "\n" for k in range(4)))
    data = f"data={{path: {tmp_path / 'data.jsonl'}}}"
    small = [f"model.name={tmp_path / 'model'}", "model.max_pixels=50176", data, "prompts=2", "sampling.max_new_tokens=12"]
    train(load_recipe(f"paper/{name}", [*SMALL, *small, "rollouts=2", "steps=1"]), tmp_path / "run")
    (logged,) = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert math.isfinite(logged["loss/total"])
    shown = json.loads(next((tmp_path / "run" / "rollouts").glob("*.jsonl")).read_text().splitlines()[0])
    assert (shown["student"][0]["role"] == "system") == (name != "grit"), "the tools are offered in the system prompt"
