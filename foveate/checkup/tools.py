"""Whether a model knows the tool dialect of its recipe: tags of its own vocabulary, its template, and a call when it is asked."""

from __future__ import annotations

import re
from collections.abc import Iterator

from ..train.config import RunConfig
from ..visual_tools.dialects.base import Call, Dialect
from ..visual_tools.dialects.hermes import CALL
from ..visual_tools.dialects.qwen3_coder import FUNCTION
from ..visual_tools.dialects.registry import dialect
from ..visual_tools.spec import build_toolbox
from ..vlm.families.base import Family
from ..vlm.generate import Engine, Sampling
from ..vlm.records import Sample, View
from ..vlm.render import Renderer
from .findings import Finding

_TAG = re.compile(r"</?[a-z_]+>")


def uses_tools(config: RunConfig) -> bool:
    return config.sampling.max_turns > 1 or (config.eval is not None and bool(config.eval.tools))


def tags_of(spoken: Dialect) -> tuple[str, ...]:
    """The tags of a zoom call as the dialect writes it; none where it has no words for one."""
    try:
        return tuple(dict.fromkeys(_TAG.findall(spoken.write([Call("zoom", {"box": [100, 100, 300, 300]}, spoken.coords)]))))
    except ValueError:
        return ()


def dialect_findings(config: RunConfig, renderer: Renderer) -> Iterator[Finding]:
    """The dialect's tags as single tokens, and what the model's template says about calls."""
    name = config.tools.dialect
    spoken = dialect(name)
    tags = [tag for tag in tags_of(spoken) if tag not in ("<think>", "</think>")]
    # tags that are tokens in no Qwen tokenizer are text for every model
    special = [tag for tag in tags if tag in (CALL, CALL.replace("<", "</"))]
    split = {tag: len(renderer.encode(tag)) for tag in special}
    pieces = {tag: number for tag, number in split.items() if number > 1}
    if pieces:
        told = ", ".join(f"{tag} is {number} tokens" for tag, number in pieces.items())
        yield Finding(
            "tool dialect", f"{name}: {told} in this tokenizer, which was not trained on such calls", "yellow",
            "each tag one token of its own",
            "start from a model that was trained on them, learn the form first (an sft stage on trajectories), or choose a "
            "dialect of plain text (tools.dialect)",
        )  # fmt: skip
    elif special:
        yield Finding("tool dialect", f"{name}: {', '.join(special)} are single tokens of this tokenizer", "green")
    else:
        shown = ", ".join(tags[:3]) or "no tags"
        yield Finding("tool dialect", f"{name}: plain text ({shown}), which a model learns in a cold start", "note")
    template = renderer.chat_template
    if special:
        yield _template(name, template)


def _template(name: str, template: str) -> Finding:
    xml = FUNCTION in template
    topic = "template's tools"
    if CALL not in template:
        return Finding(
            topic, f"the chat template offers no tools: {CALL} does not occur in it", "yellow", f"a template that writes {CALL}",
            "none is needed (the recipe's system prompt offers the tools), but expect few calls before a cold start",
        )  # fmt: skip
    if xml != (name == "qwen3_coder"):
        other = "qwen3_coder" if xml else "hermes"
        return Finding(
            topic, f"the chat template writes calls as {'XML' if xml else 'JSON'}, the dialect {name} does not", "yellow",
            "the form that the model was trained on", f"tools.dialect={other}",
        )  # fmt: skip
    return Finding(topic, f"the chat template writes calls as {name} does", "green")


def call_finding(
    config: RunConfig, family: Family, engine: Engine, renderer: Renderer, sample: Sample, view: View, max_new_tokens: int = 256
) -> Finding:
    """One greedy turn on a row of the data: does it hold a call that can be carried out?"""
    sampling = Sampling(0.0, max_new_tokens=min(max_new_tokens, config.sampling.max_new_tokens))
    ((one,),) = engine.generate([renderer.prompt(view.messages, sample.id)], [[0]], sampling)
    text = renderer.decode(one.ids)
    calls = build_toolbox(config.tools, family.coords).dialect.read(text).calls
    good = [call.name for call in calls if isinstance(call, Call)]
    shown = " ".join(text.split())[:120]
    if good:
        return Finding("tool call", f"a greedy turn on {sample.id} calls {', '.join(good)}", "green")
    what = "a call that cannot be read" if calls else "no call"
    return Finding(
        "tool call", f"a greedy turn on {sample.id} holds {what}: {shown!r}", "yellow", f"a call in {config.tools.dialect}",
        "look at more rollouts (foveate rollout); where calls never come, start with an sft stage or the model's own dialect",
    )  # fmt: skip
