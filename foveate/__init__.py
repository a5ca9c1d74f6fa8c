"""foveate: train vision-language models to look closely, and then to see without looking."""

from . import _torchvision

__version__ = "0.1.0"

_torchvision.install()
