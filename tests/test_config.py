"""Recipes: what is wrong is said, where, and how to mend it."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from foveate.train.config import RunConfig
from foveate.train.recipes import (
    RecipeError,
    dump_recipe,
    load_any,
    load_recipe,
    parse_recipe,
    parse_staged,
    recipe_names,
    recipe_schema,
)

MINIMAL = {
    "name": "x",
    "steps": 1,
    "data": {"synth": "detail"},
    "student": "full",
    "prompts": 2,
    "signals": [{"kind": "sft"}],
    "optimizer": {"lr": 1e-3},
}


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_loads_and_survives_a_round_trip(name: str) -> None:
    config = load_any(name)
    parse = parse_recipe if isinstance(config, RunConfig) else parse_staged
    assert parse(yaml.safe_load(dump_recipe(config))) == config


def test_a_typo_gets_a_did_you_mean() -> None:
    with pytest.raises(RecipeError, match=r"promts: unknown key; did you mean prompts"):
        parse_recipe({**MINIMAL, "promts": 3})
    with pytest.raises(RecipeError, match=r"optimizer.warm_steps: unknown key; did you mean warmup_steps"):
        parse_recipe({**MINIMAL, "optimizer": {"lr": 1e-3, "warm_steps": 3}})
    with pytest.raises(RecipeError, match=r"did you mean .*tiny/vision_opd"):
        load_recipe("tiny/vision_op")


def test_overrides(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(yaml.safe_dump(MINIMAL))
    config = load_recipe(
        path, ["optimizer.lr=1e-6", "model.max_pixels=4096", "signals.0.weight=0.5", "name=y", "teacher.weights=ema"]
    )
    assert (config.optimizer.lr, config.model.max_pixels, config.signals[0].weight, config.name, config.teacher.weights) == (
        1e-6,
        4096,
        0.5,
        "y",
        "ema",
    )
    with pytest.raises(RecipeError, match=r"expected key.sub=value"):
        load_recipe(path, ["steps"])
    with pytest.raises(RecipeError, match=r"'3' is not a place in a list of 1"):
        load_recipe(path, ["signals.3.weight=1"])
    with pytest.raises(RecipeError, match=r"name is a single value"):
        load_recipe(path, ["name.first=1"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"signals": []}, "at least one of sft, distill, grpo"),
        ({"signals": [{"kind": "grpo"}], "rollouts": 1}, "at least 2 are needed"),
        ({"signals": [{"kind": "sft"}, {"kind": "grpo"}], "rollouts": 2}, "cannot share a step"),
        ({"signals": [{"kind": "grpo"}], "rollouts": 4, "sampling": {"temperature": 0}}, "use 1.0"),
        ({"teacher": {"weights": "current"}}, "collapses"),
        ({"student": "fulll"}, "did you mean full"),
        ({"checkpoint": {"best_view": "full"}}, "not one of eval.views"),
        ({"eval": {"data": {"synth": "detail"}, "views": {"full": "full"}, "tools": ["zoom"]}}, "'zoom' is not one of the views"),
        ({"steps": 0}, "greater than or equal to 1"),
        ({"signals": [{"kind": "grop"}]}, "grop"),
    ],
)
def test_bad_combinations_are_refused_with_the_way_out(change: dict[str, object], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        parse_recipe({**MINIMAL, **change})


def test_a_file_that_is_no_recipe(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text("a: [1")
    with pytest.raises(RecipeError, match=r"r.yaml: not readable as YAML"):
        load_recipe(path)
    path.write_text("- 1")
    with pytest.raises(RecipeError, match="a recipe is a mapping"):
        load_recipe(path)


def test_the_schema_describes_every_field_of_a_run() -> None:
    schema = recipe_schema()["anyOf"][0]
    assert set(RunConfig.model_fields) == set(schema["properties"])
    assert schema["additionalProperties"] is False
