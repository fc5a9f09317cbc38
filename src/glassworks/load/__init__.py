"""Where models come from: a Hugging Face id or folder, the bundled toy, or a module in memory."""

from glassworks.load.load import load
from glassworks.load.wrap import wrap

__all__ = ["load", "wrap"]
