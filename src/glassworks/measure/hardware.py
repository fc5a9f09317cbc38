"""The hardware and versions that a measurement was made on, as plain names and values.

torch is asked for its version through its package's metadata and never imported: an accelerator is therefore unknown
here (None), and whoever has one adds it.
"""

import os
import platform
from importlib import metadata
from pathlib import Path

Hardware = dict[str, str | int | None]


def fingerprint() -> Hardware:
    """`cpu`, `cores`, `memory_bytes`, `python`, `torch`, `transformers`, `accelerator`; None: not known."""
    return {
        "cpu": _cpu(), "cores": os.cpu_count(), "memory_bytes": _memory_bytes(), "python": platform.python_version(),
        "torch": _version("torch"), "transformers": _version("transformers"), "accelerator": None,
    }  # fmt: skip


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:  # not Linux
        lines = []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor() or platform.machine()


def _memory_bytes() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # not POSIX
        return None


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
