"""Recipe files: one YAML file says a whole run, and nothing is silently ignored.

`load_recipe` reads a file (or the name of a recipe that ships with foveate), applies ``key.sub=value`` overrides and validates.
An unknown key is an error with a did-you-mean.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pydantic
import yaml

from .config import RunConfig
from .staged import OWN_KEYS, Stage, StagedConfig, rehearsing, split_stages

RECIPES = Path(__file__).resolve().parent.parent / "recipes"


class RecipeError(ValueError):
    """A recipe that cannot be read or makes no sense. The message names the file and the key."""


def recipe_path(name: str) -> Path:
    """The file of a recipe: a path, or the name of one that ships with foveate (``tiny/vision_opd``)."""
    given = Path(name)
    if given.is_file():
        return given
    shipped = RECIPES / (name if name.endswith((".yaml", ".yml")) else f"{name}.yaml")
    if shipped.is_file():
        return shipped
    known = recipe_names()
    near = difflib.get_close_matches(name, known, 3, 0.3)
    raise RecipeError(
        f"{name}: no such file, and no recipe of that name; "
        + (f"did you mean {', '.join(near)}?" if near else f"there are {', '.join(known)}")
    )


def recipe_names() -> list[str]:
    """Names of the recipes that ship with foveate."""
    return sorted(path.relative_to(RECIPES).with_suffix("").as_posix() for path in RECIPES.rglob("*.yaml"))


def load_recipe(name: str | Path, overrides: Sequence[str] = ()) -> RunConfig:
    """`load_any`, for who can use one stage only."""
    config = load_any(name, overrides)
    if isinstance(config, StagedConfig):
        names = [one.name for one in config.stages]
        raise RecipeError(
            f"{name}: it has the stages {', '.join(names)}, and here one is needed; write {name}#{names[0]}, say"
        )
    return config


def load_any(name: str | Path, overrides: Sequence[str] = ()) -> RunConfig | StagedConfig:
    """Read, override and validate a recipe, with stages or without; ``NAME#STAGE`` is one stage. Raises `RecipeError`."""
    text, _, stage = str(name).partition("#")
    path = recipe_path(text)
    data = _read(path)
    for override in overrides:
        _override(data, override)
    config = parse_staged(data, str(path)) if "stages" in data else parse_recipe(data, str(path))
    if not stage:
        return config
    names = [one.name for one in config.stages] if isinstance(config, StagedConfig) else []
    if isinstance(config, RunConfig) or stage not in names:
        raise RecipeError(f"{text} has no stage {stage}; it has {', '.join(names) or 'none at all'}")
    return config.named(stage).run


def _read(path: Path) -> dict[str, Any]:
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise RecipeError(f"{path}: not readable as YAML: {error}") from error
    if not isinstance(data, dict):
        raise RecipeError(f"{path}: a recipe is a mapping of keys to values, this is {type(data).__name__}")
    return data


def parse_recipe(data: dict[str, Any], where: str = "recipe") -> RunConfig:
    """Validate a recipe given as a mapping. Raises `RecipeError` with one line per mistake."""
    try:
        return RunConfig.model_validate(data)
    except pydantic.ValidationError as error:
        raise RecipeError(f"{where}:\n" + "\n".join(_explain(detail) for detail in error.errors())) from error


def parse_staged(data: dict[str, Any], where: str = "recipe") -> StagedConfig:
    """Validate a recipe with stages, stage by stage. Raises `RecipeError`."""
    try:
        split = split_stages(data, where)
    except ValueError as error:
        raise RecipeError(str(error)) from error
    mistakes, stages = [], []
    for place, (own, recipe) in enumerate(split):
        try:
            stages.append(Stage(**own, run=parse_recipe(recipe, f"{where}: stages.{place} ({own['name']})")))
        except RecipeError as error:
            mistakes.append(str(error))
        except pydantic.ValidationError as error:
            mistakes += [f"{where}: stages.{place} ({own['name']}):", *(_explain(one) for one in error.errors())]
    if mistakes:
        raise RecipeError("\n".join(mistakes))
    try:
        config = StagedConfig(name=data.get("name", "staged"), stages=tuple(stages), report=data.get("report"))
        rehearsing(config.stages)
    except pydantic.ValidationError as error:
        raise RecipeError(f"{where}:\n" + "\n".join(_explain(one) for one in error.errors())) from error
    except ValueError as error:
        raise RecipeError(f"{where}: {error}") from error
    return config


def dump_recipe(config: RunConfig | StagedConfig) -> str:
    """The resolved recipe as YAML; `load_any` reads it back to an equal one."""
    if isinstance(config, RunConfig):
        data = config.model_dump(mode="json")
    else:
        whole = config.model_dump(mode="json")
        stages = [{**{key: stage[key] for key in OWN_KEYS}, **stage["run"], "name": stage["name"]} for stage in whole["stages"]]
        data = {"name": config.name, "report": whole["report"], "stages": stages}
    return yaml.safe_dump(data, sort_keys=False, allow_unicode=True, width=120)


def recipe_schema() -> dict[str, Any]:
    """JSON schema of a recipe, with stages or without, for editors."""
    plain = RunConfig.model_json_schema(ref_template="#/$defs/{model}")
    staged = StagedConfig.model_json_schema(ref_template="#/$defs/{model}")
    definitions = {**plain.pop("$defs"), **staged["$defs"]}
    own = {key: definitions["Stage"]["properties"][key] for key in OWN_KEYS}
    common = {key: value for key, value in plain["properties"].items() if key != "name"}
    stage = {"type": "object", "additionalProperties": False, "properties": {**own, **common}, "required": ["name", "kind"]}
    with_stages = {
        "type": "object",
        "additionalProperties": False,
        "properties": {
            **plain["properties"],
            "report": staged["properties"]["report"],
            "stages": {"type": "array", "items": stage},
        },
        "required": ["stages"],
    }
    del definitions["Stage"]
    return {"title": "foveate recipe", "anyOf": [plain, with_stages], "$defs": definitions}


def _override(data: dict[str, Any], override: str) -> None:
    key, equals, value = override.partition("=")
    if not equals or not key:
        raise RecipeError(f"override {override!r}: expected key.sub=value")
    *parents, last = key.split(".")
    node: Any = data
    if parents[:1] == ["model"] and isinstance(data.get("model"), str):
        data["model"] = {"name": data["model"]}
    for parent in parents:
        if isinstance(node, list):
            node = _element(node, parent, override)
        else:
            if node.get(parent) is None:
                node[parent] = {}
            node = node[parent]
        if not isinstance(node, dict | list):
            raise RecipeError(f"override {override!r}: {parent} is a single value and has no keys below it")
    try:
        parsed = yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise RecipeError(f"override {override!r}: the value is not YAML ({error})") from error
    if isinstance(node, list):
        _element(node, last, override)
        node[int(last)] = parsed
    else:
        node[last] = parsed


def _element(node: list[Any], index: str, override: str) -> Any:
    if not index.isdigit() or int(index) >= len(node):
        raise RecipeError(f"override {override!r}: {index!r} is not a place in a list of {len(node)} (they count from 0)")
    return node[int(index)]


def _explain(detail: Any) -> str:
    place = ".".join(str(piece) for piece in detail["loc"])
    place += ": " if place else ""  # a rule about the whole recipe names its keys itself
    if detail["type"] != "extra_forbidden":
        given = detail.get("input")
        shown = f" (given: {given!r})" if isinstance(given, str | int | float | bool) else ""
        return f"  {place}{detail['msg'].removeprefix('Value error, ')}{shown}"
    unknown = str(detail["loc"][-1])
    near = difflib.get_close_matches(unknown, sorted(_all_keys()), 3, 0.6)
    return f"  {place}unknown key" + (f"; did you mean {' or '.join(near)}?" if near else "")


def _all_keys() -> set[str]:
    keys: set[str] = set()

    def walk(node: Any) -> None:
        if isinstance(node, dict):
            keys.update(node.get("properties", {}))
            for value in node.values():
                walk(value)
        elif isinstance(node, list):
            for value in node:
                walk(value)

    walk(recipe_schema())
    return keys
