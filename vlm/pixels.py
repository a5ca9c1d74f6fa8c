"""Pixels to patches: resize, normalise and cut, equal to the torchvision processors of the Qwen-VL families (tests compare).

Legend: F frames, C colour channels (3), H height, W width, P patches, D values of one patch (C x temporal patch x patch x patch).
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F

from .images import ImageSettings, Picture
from .segments import VisualItem


def frame_CHW(picture: Picture, width_px: int, height_px: int) -> torch.Tensor:
    """``[C, H, W]`` uint8 of the given size: bicubic with antialiasing, done in uint8 as torchvision does it on a CPU."""
    image_CHW = torch.from_numpy(np.array(picture.rgb())).permute(2, 0, 1).contiguous()
    if picture.size_px == (width_px, height_px):
        return image_CHW
    return F.interpolate(image_CHW[None], size=(height_px, width_px), mode="bicubic", antialias=True)[0]


def patches_PD(item: VisualItem, settings: ImageSettings) -> torch.Tensor:
    """Float32 ``[P, D]`` patches of a picture or clip, ordered so that the patches of one token are neighbours.

    A picture fills its temporal patch with copies of itself; a clip whose frames do not fill the last one repeats its last frame.
    """
    frames = (item.source,) if isinstance(item.source, Picture) else item.source.frames
    video_FCHW = torch.stack([frame_CHW(frame, item.width_px, item.height_px) for frame in frames]).float()
    mean_C11 = torch.tensor(settings.mean).view(3, 1, 1) * 255.0
    std_C11 = torch.tensor(settings.std).view(3, 1, 1) * 255.0
    video_FCHW.sub_(mean_C11).div_(std_C11)
    short_by = -len(frames) % settings.temporal_patch_size
    if len(frames) == 1:
        video_FCHW = video_FCHW.expand(settings.temporal_patch_size, -1, -1, -1)  # no copy until the patches are laid out
    elif short_by:
        video_FCHW = torch.cat([video_FCHW, video_FCHW[-1:].expand(short_by, -1, -1, -1)])
    t, h, w = item.grid_thw
    m, p = settings.merge_size, settings.patch_size
    cut = video_FCHW.reshape(t, settings.temporal_patch_size, 3, h // m, m, p, w // m, m, p)
    return cut.permute(0, 3, 6, 4, 7, 2, 1, 5, 8).reshape(t * h * w, -1).contiguous()
