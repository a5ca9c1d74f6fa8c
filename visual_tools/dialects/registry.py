"""All dialects by name."""

from __future__ import annotations

import difflib
from collections.abc import Mapping

from .arm_thinker import ARM_THINKER
from .base import Dialect
from .code import CODE
from .frame_thinker import FRAME_THINKER
from .grit import GRIT
from .hermes import HERMES
from .lenient import ANY
from .mini_o3 import MINI_O3
from .openthinkimg import OPENTHINKIMG
from .pixel_reasoner import PIXEL_REASONER
from .qwen3_coder import QWEN3_CODER
from .qwen3_vl import QWEN3_VL
from .treevgr import TREEVGR
from .vilasr import VILASR

_ALL: tuple[Dialect, ...] = (
    HERMES,
    QWEN3_VL,
    QWEN3_CODER,
    MINI_O3,
    PIXEL_REASONER,
    OPENTHINKIMG,
    VILASR,
    FRAME_THINKER,
    ARM_THINKER,
    GRIT,
    TREEVGR,
    CODE,
    ANY,
)
DIALECTS: Mapping[str, Dialect] = {dialect.name: dialect for dialect in _ALL}
"""Every dialect by its name."""


def dialect(name: str) -> Dialect:
    """The dialect of this name. Raises `ValueError` with the names that are near.

    >>> dialect("mini_o3").coords
    'norm1'
    """
    if name not in DIALECTS:
        near = difflib.get_close_matches(name, DIALECTS, 3, 0.5)
        hint = f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(sorted(DIALECTS))}"
        raise ValueError(f"no dialect named {name!r}; {hint}")
    return DIALECTS[name]
