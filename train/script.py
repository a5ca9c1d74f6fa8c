"""Playing a script: a trajectory becomes a rollout as if the model had said it, with what the tools really answer."""

from __future__ import annotations

from ..datasets.trajectories import Trajectory
from ..vlm.images import Picture
from ..vlm.messages import Clip
from ..vlm.records import Reply, Rollout, Shown, StopReason, ToolCall, Turn, View
from ..vlm.render import Renderer
from ..vlm.rollout import Toolbox


class ScriptError(ValueError):
    """A script that cannot be played. Names the sample, the turn, and what is wrong."""


def play_script(
    trajectory: Trajectory,
    view: View,
    toolbox: Toolbox | None,
    renderer: Renderer,
    *,
    allow_errors: bool = False,
    policy_version: int = 0,
) -> Rollout:
    """The rollout of a trajectory in a view: its actions tokenized, with log-probs 0, and the observations between them.

    An observation that the trajectory holds is shown as it is; any other the ``toolbox`` gives. Only the actions will be in the
    loss. Raises `ScriptError`: for a call that the tools answer with an error and for a last action that calls a tool (unless
    ``allow_errors``; the rollout then ends with `StopReason.TURNS`), for an action before the last that calls none, and for
    text that holds a token which only the sampler or the renderer may write.
    """
    turns: list[Turn] = []
    visuals, made = list(view.visuals), list[ToolCall]()
    num_prompt, last = len(visuals), len(trajectory.actions) - 1
    for n, text in enumerate(trajectory.actions):
        where = f"sample {trajectory.sample.id}, turn {n}"
        given = trajectory.observations[n] if n < last else None
        if given is not None:
            reply: Reply | None = Reply(given, trajectory.calls[n])
        else:
            seen_px = tuple(_seen_px(visual, renderer) for visual in visuals)
            shown = Shown(tuple(visuals), seen_px, num_prompt, n, tuple(made))
            reply = None if toolbox is None else toolbox.act(text, shown)
            _check(reply, n == last, toolbox, allow_errors, where)
        calls = () if reply is None else reply.calls
        observation = None if reply is None or n == last else reply.message
        ids = _ids(text, renderer, where)
        stop = StopReason.ANSWERED if reply is None else StopReason.TOOL_CALL
        turns.append(Turn(ids, (0.0,) * len(ids), text, stop, observation, policy_version, calls))
        made += calls
        visuals += [] if observation is None else [part for part in observation.parts if not isinstance(part, str)]
    end = StopReason.ANSWERED if turns[-1].stop is StopReason.ANSWERED else StopReason.TURNS
    return Rollout(trajectory.sample.id, trajectory.sample.id, 0, view, tuple(turns), end)


def _check(reply: Reply | None, is_last: bool, toolbox: Toolbox | None, allow_errors: bool, where: str) -> None:
    """Raise `ScriptError` unless the world's reply goes with the place of the action in its script."""
    if reply is None and not is_last:
        why = "there are no tools to ask and no observation is given" if toolbox is None else "its action calls no tool"
        raise ScriptError(
            f"{where}: {why}, yet another action follows; give the observation, or the dialect that the script is in"
        )
    if reply is None or allow_errors:
        return
    wrong = next((f"the tool {call.name} answers: {call.error}" for call in reply.calls if call.error is not None), None)
    if wrong is None and is_last:
        wrong = "the last action calls a tool, so that the script never answers"
    if wrong is not None:
        raise ScriptError(f"{where}: {wrong}; mend or remove the script, or allow errors to teach it as it is")


def _ids(text: str, renderer: Renderer, where: str) -> tuple[int, ...]:
    ids = renderer.encode(text)
    written = {*renderer.stop_ids, *renderer.banned_ids}.intersection(ids)
    if written:
        raise ScriptError(
            f"{where}: the action holds the token {renderer.tokenizer.convert_ids_to_tokens(min(written))}; remove it"
        )
    return (*ids, renderer.stop_ids[0])


def _seen_px(visual: Picture | Clip, renderer: Renderer) -> tuple[int, int]:
    item = renderer.item(visual)
    return item.width_px, item.height_px
