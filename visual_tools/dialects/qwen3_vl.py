"""Qwen3-VL's ``image_zoom_in_tool``: Hermes with coordinates of 0 to 1000 and ``img_idx`` from 0, which may be left out.

Its chat template writes a message of the role ``tool`` as a user turn, with ``<tool_response>`` and its end on lines of their
own. A user turn with this text is what we send: it reads the same, and pictures in it survive every template.
"""

from __future__ import annotations

from .hermes import Hermes

QWEN3_VL = Hermes("qwen3_vl", "norm1000", break_lines=True)
