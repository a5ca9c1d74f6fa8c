"""The ways of asking: direct, imagine, tools, crop and consistency, each a `Mode` and nothing more.

The prompts are those of `datasets.presets`, so that a model is asked as it was trained. The embedded tiny model knows few words
and is asked with its own.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any

from ..datasets.views import ViewSpec, make_view, resolve_view
from ..visual_tools.spec import ToolsSpec
from ..vlm.records import View
from .records import Item, Mode

MODES: Mapping[str, Mode] = {
    # the picture and the question, as they are
    "direct": Mode("direct", resolve_view("full"), official_tail=True),
    # in words alone, looking closer in the mind
    "imagine": Mode("imagine", resolve_view("imagine")),
    # the rollout loop; the prompt offers whatever tools the mode has, in their dialect
    "tools": Mode("tools", ViewSpec(name="tools", system="tools"), tools=ToolsSpec(), max_turns=6),
    # the evidence is given: its crop takes the picture's place
    "crop": Mode("crop", resolve_view("crop"), official_tail=True),
    # several answers, voted on
    "consistency": Mode("consistency", resolve_view("full"), temperature=1.0, n=5, official_tail=True),
}
"""How any model is asked, by name."""
_TINY: Mapping[str, Mapping[str, Any]] = {
    "direct": {"view": "tiny.full"},
    "imagine": {"view": "tiny.imagine"},
    "tools": {"view": "tiny.tools", "max_turns": 3},
    "crop": {"view": "tiny.crop"},
    "consistency": {"view": "tiny.full"},
}
_TINY_TOKENS = 80  # its longest action, a call, has 56


def mode(name: str, tiny: bool = False, **overrides: Any) -> Mode:
    """The mode of this name, for the embedded ``tiny`` model or any other; ``overrides`` are fields of `Mode`.

    ``view`` may be a preset's name or a mapping, ``tools`` a mapping. `ValueError` with a did-you-mean for an unknown name.
    """
    if name not in MODES:
        raise ValueError(f"there is no mode {name!r}; {_near(name, list(MODES))}")
    own = {**_TINY[name], "max_new_tokens": _TINY_TOKENS, "official_tail": False} if tiny else {}
    changes = {**own, **overrides}
    known = [one.name for one in fields(Mode)]
    for key in changes:
        if key not in known:
            raise ValueError(f"mode {name}: there is no {key!r}; {_near(key, known)}")
    if "view" in changes:
        changes["view"] = resolve_view(changes["view"])
    if isinstance(changes.get("tools"), Mapping):
        changes["tools"] = ToolsSpec.model_validate(changes["tools"])
    made = replace(MODES[name], **changes)
    if made.n < 1 or made.max_turns < 1 or made.max_new_tokens < 1 or made.temperature < 0:
        raise ValueError(f"mode {name}: expected n, max_turns, max_new_tokens >= 1 and temperature >= 0, got {made}")
    if made.n > 1 and made.temperature == 0:
        raise ValueError(f"mode {name}: {made.n} greedy answers are all the same; set temperature above 0, or n to 1")
    return made


def describe(mode: Mode) -> dict[str, Any]:
    """The mode as JSON: all that decides how items are asked."""
    told = {one.name: mode.__dict__[one.name] for one in fields(mode)}
    tools = None if mode.tools is None else mode.tools.model_dump(mode="json")
    return {**told, "view": mode.view.model_dump(mode="json"), "tools": tools}


def view_of(item: Item, mode: Mode, tail: str = "", tools_prompt: str | None = None) -> View:
    """What the model is shown of an item. ``tail`` is the benchmark's own sentence, on a line of its own behind the options.

    `ValueError` names the item and what it lacks.
    """
    spec = mode.view
    if tail and mode.official_tail:
        spec = spec.model_copy(update={"suffix": spec.suffix + (tail if tail[0].isspace() else f"\n{tail}")})
    return make_view(item.sample, spec, "student", tools_prompt)


def _near(name: str, known: list[str]) -> str:
    near = difflib.get_close_matches(name, known, 3, 0.5)
    return f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(known)}"
