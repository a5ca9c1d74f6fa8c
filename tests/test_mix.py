"""The order of samples: every sample once an epoch, shares to within one, and exact resume."""

from __future__ import annotations

from collections import Counter

import pytest

from foveate.datasets.mix import Blend, draw, position_to_index
from foveate.datasets.spec import load_data
from foveate.vlm.records import Sample


def named(name: str, num: int) -> list[Sample]:
    return [Sample(id=f"{name}{index}", question="q") for index in range(num)]


@pytest.mark.parametrize("length", [1, 2, 7, 100])
def test_an_epoch_holds_every_sample_once(length: int) -> None:
    for epoch in range(3):
        assert sorted(position_to_index(epoch * length + place, length, 5) for place in range(length)) == list(range(length))


def test_epochs_and_seeds_differ() -> None:
    orders = [
        tuple(position_to_index(start + place, 50, seed) for place in range(50)) for start, seed in ((0, 0), (50, 0), (0, 1))
    ]
    assert len(set(orders)) == 3
    with pytest.raises(ValueError, match="at least one"):
        position_to_index(0, 0, 0)


def test_shares_are_kept_to_within_one_at_every_moment() -> None:
    blend = Blend([named("a", 10), named("b", 30), named("c", 5)], [5, 3, 2])
    counts: Counter[str] = Counter()
    for position in range(500):
        counts[draw(blend, position, 0).id[0]] += 1
        for name, share in (("a", 0.5), ("b", 0.3), ("c", 0.2)):
            assert abs(counts[name] - share * (position + 1)) <= 1
    assert counts == {"a": 250, "b": 150, "c": 100}


def test_each_source_goes_through_its_own_epochs() -> None:
    blend = Blend([named("a", 10), named("b", 4)], [1, 1])
    drawn = [draw(blend, position, 3).id for position in range(40)]
    of_a = [name for name in drawn if name.startswith("a")]
    of_b = [name for name in drawn if name.startswith("b")]
    assert sorted(of_a[:10]) == sorted(of_a[10:20]) == sorted({f"a{index}" for index in range(10)})
    assert all(len(set(of_b[start : start + 4])) == 4 for start in range(0, 20, 4))


def test_a_mixture_in_a_recipe() -> None:
    spec = {
        "mix": [
            {"data": {"synth": "detail", "n": 6}, "weight": 3},
            {"data": {"synth": "place", "n": 3, "kinds": ["letter", "where"]}},
        ]
    }
    blend = load_data(spec)
    assert isinstance(blend, Blend)
    assert blend.shares == (0.75, 0.25)
    assert len(blend) == 9
    assert blend[-1] == blend.sources[1][-1]
    assert len({sample.id for sample in blend}) == 9
    with pytest.raises(ValueError, match="not empty"):
        Blend([[]])
    with pytest.raises(ValueError, match="one weight"):
        Blend([named("a", 1)], [0])
