"""Which tools a sample gets: by recipe, by its tag, and what its view says of them."""

from __future__ import annotations

import dataclasses

import pytest

from foveate.datasets.views import make_view, resolve_view
from foveate.train.protocols import Protocols
from foveate.train.recipes import load_recipe
from foveate.visual_tools.spec import ToolsSpec
from foveate.vlm.records import Sample
from foveate.vlm.rollout import Limits

SAMPLE = Sample(id="a", question="Which?")


def tagged(name: str) -> Sample:
    return dataclasses.replace(SAMPLE, tags={"protocol": name})


def protocols(turns: int = 3) -> Protocols:
    others = {"drawing": ToolsSpec(dialect="vilasr", tools={"draw_box": {}})}
    return Protocols(ToolsSpec(), others, Limits(turns=turns, pictures=2), "abs_resized")


def test_a_sample_is_played_with_the_tools_of_its_tag() -> None:
    made = protocols()
    default, drawing = made.toolbox(SAMPLE), made.toolbox(tagged("drawing"))
    assert default is not None
    assert drawing is not None
    assert (default.dialect.name, drawing.dialect.name) == ("hermes", "vilasr")
    assert default.settings.coords == "abs_resized", "auto coordinates are those of the model's family"
    assert made.toolbox(tagged("none")) is None
    assert made.rules(SAMPLE).limits == Limits(turns=3, pictures=2)
    with pytest.raises(ValueError, match=r"sample a: protocol 'python' is not in the recipe's protocols \(drawing\)"):
        made.toolbox(tagged("python"))


def test_one_turn_is_played_without_tools() -> None:
    assert protocols(turns=1).toolbox(SAMPLE) is None
    assert protocols(turns=1).prompt(SAMPLE) is None


def test_a_view_offers_the_tools_of_its_sample() -> None:
    made, spec = protocols(), resolve_view({"system": "tools"})
    shown = make_view(SAMPLE, spec, "student", made.prompt(SAMPLE))
    assert "image_zoom_in_tool" in shown.messages[0].text
    drawing = make_view(tagged("drawing"), spec, "student", made.prompt(tagged("drawing")))
    assert "bbox_2d" in drawing.messages[0].text
    assert drawing.messages[0].text != shown.messages[0].text
    with pytest.raises(ValueError, match="sample a: the view given offers tools and none are given"):
        make_view(SAMPLE, spec, "student")


def test_recipes_name_tools_protocols_and_limits() -> None:
    config = load_recipe("deepeyes", ["tools.tools=[zoom,rotate]", "protocols={chart: {dialect: mini_o3}}", "limits.errors=2"])
    assert set(config.tools.tools) == {"zoom", "rotate"}
    assert config.protocols["chart"].dialect == "mini_o3"
    assert config.limits.errors == 2
    assert config.eval is not None
    assert config.eval.tools["tools"] is None, "a name alone has the tools of the run"
    with pytest.raises(ValueError, match="did you mean"):
        load_recipe("deepeyes", ["tools.dialect=hermess"])
