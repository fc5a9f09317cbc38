"""A real service in which a job that comes alone is alone, so that the bits of two runs can be compared.

The self-test of a service shares passes with the jobs of people. A pass of another shape rounds otherwise in the last
bit, as any company's does; what company may change is a law of its own.
"""

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest

_WEB = """
import sys
from glassworks.serve import health, web
health._EVERY_S = 1e9  # after the first, which says that the worker is there
sys.exit(web.main())
"""


@contextmanager
def undisturbed_service(model: str) -> Iterator[Any]:
    """As `running_service`."""
    from glassworks.serve import supervise

    with ExitStack() as stack:
        with pytest.MonkeyPatch.context() as patch:  # for this service's own web process
            patch.setattr(supervise, "_WEB", (sys.executable, "-c", _WEB))
            running = stack.enter_context(supervise.running_service(model))
        yield running
