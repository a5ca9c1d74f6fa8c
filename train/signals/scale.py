"""What multiplies the advantages of a whole group: ADORA, the difficulty weight of GUI-G1. Formulas are with the settings."""

from __future__ import annotations

import math

from ...vlm.records import Group, Rollout
from .settings import AdoraScale, BoxSizeScale


def factor(group: Group, scale: AdoraScale | BoxSizeScale | None) -> float:
    """The group's multiplier; 1 without a scale. Raises `ValueError` for a sample that lacks what the scale measures."""
    match scale:
        case None:
            return 1.0
        case AdoraScale():
            return _adora(group, scale)
        case BoxSizeScale():
            return _box_size(group, scale)


def _adora(group: Group, scale: AdoraScale) -> float:
    right = [one.num_actions for one in group.rollouts if _is_right(one, scale.right_above)]
    wrong = [one.num_actions for one in group.rollouts if not _is_right(one, scale.right_above)]
    wrong = [tokens for tokens in wrong if scale.cap_tokens is None or tokens < scale.cap_tokens]
    if right and wrong:
        return 1.0 if max(right) > sum(wrong) / len(wrong) else scale.damp
    return 1.0 if bool(right) == (scale.form == "llm") else scale.damp


def _is_right(rollout: Rollout, above: float | None) -> bool:
    if rollout.reward is None:
        raise ValueError(f"rollout {rollout.group_id}/{rollout.index}: a scale by right and wrong needs rewards, and it has none")
    return rollout.reward.outcome == "right" if above is None else rollout.reward.total > above


def _box_size(group: Group, scale: BoxSizeScale) -> float:
    """Of several evidence boxes the largest, which is the easiest to hit."""
    sample, privileged = group.sample, group.sample.privileged
    if not privileged.boxes_px_xyxy or privileged.box_image >= len(sample.images):
        raise ValueError(
            f"sample {sample.id}: scale box_size needs an evidence box (privileged.boxes_px_xyxy) in a picture of the sample, "
            "and there is none; remove the sample, or the scale"
        )
    picture = sample.images[privileged.box_image]
    area_px = max((x2 - x1) * (y2 - y1) for x1, y1, x2, y2 in privileged.boxes_px_xyxy)
    if area_px <= 0:
        return scale.most
    frac = area_px / (picture.width_px * picture.height_px)
    return min(max(math.pow(scale.typical_frac / frac, scale.power), scale.least), scale.most)
