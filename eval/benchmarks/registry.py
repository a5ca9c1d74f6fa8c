"""Every benchmark by its name."""

from __future__ import annotations

import difflib

from ..records import Benchmark
from . import (
    blink,
    custom,
    cvbench,
    hrbench,
    longvideobench,
    mathverse,
    mathvision,
    mathvista,
    mme_realworld,
    mmstar,
    mmvp,
    pope,
    realworldqa,
    synth,
    treebench,
    videomme,
    visualprobe,
    vstar,
    wemath,
    zoombench,
)

_ALL: tuple[Benchmark, ...] = (
    vstar.VSTAR,
    *hrbench.HRBENCH,
    *mme_realworld.MME_REALWORLD,
    zoombench.ZOOMBENCH,
    treebench.TREEBENCH,
    *visualprobe.VISUALPROBE,
    realworldqa.REALWORLDQA,
    blink.BLINK,
    cvbench.CVBENCH,
    mmstar.MMSTAR,
    mmvp.MMVP,
    pope.POPE,
    wemath.WEMATH,
    mathvista.MATHVISTA,
    mathverse.MATHVERSE,
    mathvision.MATHVISION,
    videomme.VIDEO_MME,
    longvideobench.LONGVIDEOBENCH,
    custom.CUSTOM,
    synth.SYNTH,
)
BENCHMARKS: dict[str, Benchmark] = {one.name: one for one in _ALL}
"""Names are lower case with dashes."""


def benchmark(name: str) -> Benchmark:
    """The benchmark of this name; case, spaces, underscores and dashes do not matter. `ValueError` with a did-you-mean."""
    squeezed = {_squeezed(known): one for known, one in BENCHMARKS.items()}
    found = squeezed.get(_squeezed(name))
    if found is None:
        near = difflib.get_close_matches(name.lower(), BENCHMARKS, 3, 0.5)
        hint = f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(BENCHMARKS)}"
        raise ValueError(f"no benchmark named {name!r}; {hint}")
    return found


def _squeezed(name: str) -> str:
    return "".join(char for char in name.lower() if char.isalnum())
