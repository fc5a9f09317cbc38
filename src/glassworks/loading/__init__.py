"""Where models come from: a Hugging Face id or folder, the bundled toy, or a module in memory."""

from glassworks.loading.load import load
from glassworks.loading.wrap import wrap

__all__ = ["load", "wrap"]
