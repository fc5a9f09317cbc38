"""The runtime seam: what performs forward steps for a batch and visits just the sites that some graph asks for."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch

from glassworks.run.interpret import Interpreter


class Runtime(Protocol):
    """Eager and staged are runtimes; a new one joins the laws.

    Attributes:
        module: the model. unembed: from the last residual to the logits, as a pure function; None: it has none.
    """

    module: torch.nn.Module
    unembed: Any

    @property
    def device(self) -> torch.device | None:
        """Where the weights are; None if there are none."""

    def parameter(self, path: str) -> torch.Tensor:
        """A weight by name."""

    def call_module(self, path: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """A module of the model, or `unembed`, as a pure function: it fires no sites."""

    def step(
        self,
        args: Sequence[Any],
        inputs: Mapping[str, Any],
        interpreters: Sequence[Interpreter],
        cache: dict[str, Any] | None = None,
    ) -> Any:
        """One forward pass, in the caller's grad mode (which a backward overrides).

        Args:
            args, inputs: what the module is called with. interpreters: the graphs that take part.
            cache: of a generation: kept from step to step by the caller, filled here; None: no cache.

        Returns:
            What the module returned; None if the pass ended at the last event that was needed.
        """
