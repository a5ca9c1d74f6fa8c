"""Held-out accuracy: the prompt of training, honest counting, intervals by hand."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from foveate.datasets.curriculum import Shuffled
from foveate.datasets.scene_stream import scene_samples
from foveate.datasets.views import make_view, resolve_view
from foveate.eval.holdout import HeldOut, HoldoutEvaluator
from foveate.eval.intervals import accuracy_interval, paired_gain_interval
from foveate.train.collect import Task
from foveate.train.config import SamplingPart
from foveate.train.protocols import Protocols
from foveate.visual_tools.spec import ToolsSpec
from foveate.vlm.load import VLM, load
from foveate.vlm.rollout import Limits


@pytest.fixture(scope="module")
def tiny() -> VLM:
    return load("tiny")


def test_the_embedded_model_reads_crops_better_than_pictures_and_zooms(tiny: VLM) -> None:
    detail, place = scene_samples("detail", "test", 96), scene_samples("place", "test", 48)
    views = {
        "full": HeldOut(detail, resolve_view("tiny.full")),
        "crop": HeldOut(detail, resolve_view("tiny.crop")),
        "zoom": HeldOut(place, resolve_view("tiny.tools"), ToolsSpec(), 4),
        "direct": HeldOut(place, resolve_view("tiny.full")),
    }
    found = HoldoutEvaluator(views, max_new_tokens=80, during=8)(tiny, 0, True)["views"]
    accuracy = {name: one["accuracy"] for name, one in found.items()}
    assert accuracy["crop"] >= 0.9
    assert accuracy["full"] <= accuracy["crop"] - 0.1
    assert accuracy["zoom"] >= 0.8
    assert accuracy["direct"] <= 0.3
    assert found["zoom"]["turns_mean"] == 2
    assert found["full"]["n"] == 96
    assert found["full"]["accuracy"] == sum(found["full"]["right"]) / 96
    assert (
        HoldoutEvaluator(views, max_new_tokens=80, during=8)(tiny, 0, False)["views"]["full"]["right"]
        == found["full"]["right"][:8]
    )


def test_what_cannot_be_parsed_is_wrong_and_counted(tiny: VLM) -> None:
    held = HeldOut(scene_samples("detail", "test", 4), resolve_view("tiny.full"))
    found = HoldoutEvaluator({"full": held}, max_new_tokens=2)(tiny, 0, True)["views"]["full"]
    assert (found["accuracy"], found["unparsed_frac"], found["truncated_frac"]) == (0.0, 1.0, 1.0)


def test_law_13_training_and_evaluation_write_the_same_prompt(tiny: VLM) -> None:
    samples, spec = scene_samples("place", "test", 3), resolve_view("tiny.tools")
    protocols = Protocols(ToolsSpec(), {}, Limits(turns=1), "norm1000")
    task = Task("main", samples, Shuffled(samples, 0, 3), spec, 3, 1, SamplingPart(), 0, protocols)
    trained = {sample.id: tiny.renderer.prompt(task.view_of(sample).messages) for sample in samples}
    for sample in samples:
        evaluated = tiny.renderer.prompt(make_view(sample, spec, "student").messages)
        assert np.array_equal(trained[sample.id].ids_T, evaluated.ids_T)
        assert [span.item.key for span in trained[sample.id].visuals] == [span.item.key for span in evaluated.visuals]
    other = dataclasses.replace(samples[0], question="Another question?")
    assert not np.array_equal(
        trained[samples[0].id].ids_T, tiny.renderer.prompt(make_view(other, spec, "student").messages).ids_T
    )


def test_intervals_by_hand() -> None:
    # Wilson, 8 of 10: centre (0.8 + z^2 / 20) / (1 + z^2 / 10), half width z sqrt(0.016 + z^2 / 400) / (1 + z^2 / 10)
    z = 1.959963984540054
    centre, half = (0.8 + z * z / 20) / (1 + z * z / 10), z * (0.016 + z * z / 400) ** 0.5 / (1 + z * z / 10)
    assert accuracy_interval(8, 10) == pytest.approx((centre - half, centre + half), abs=1e-9)
    assert accuracy_interval(0, 0) == (0.0, 1.0)
    assert paired_gain_interval([0, 1] * 50, [0, 1] * 50) == (0.0, 0.0)
    low, high = paired_gain_interval([0] * 100, [1] * 50 + [0] * 50)
    assert (low, high) == pytest.approx((0.5 - 1.96 * 0.05, 0.5 + 1.96 * 0.05), abs=0.02)  # normal approximation of the bootstrap
    with pytest.raises(ValueError, match="evaluate the same items"):
        paired_gain_interval([0], [0, 1])
