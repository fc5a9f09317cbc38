"""An arena: a budget of bytes that nothing may exceed, and who has taken how much of it.

It knows nothing of tensors: whoever allocates takes bytes first and gives them back last, so `used_bytes` is what lies
there now and `peak_bytes` the most that ever did.
"""

from glassworks.errors import BudgetExceeded
from glassworks.units import spelled


class Arena:
    """Bytes of one tier.

    Attributes:
        name: of the tier: device, host, disk. budget_bytes: what it has in all.
        used_bytes, peak_bytes: taken now, and at most so far.
    """

    def __init__(self, name: str, budget_bytes: int) -> None:
        self.name, self.budget_bytes = name, budget_bytes
        self.used_bytes = self.peak_bytes = 0

    @property
    def free_bytes(self) -> int:
        """What is left."""
        return self.budget_bytes - self.used_bytes

    def take(self, size_bytes: int, what: str) -> None:
        """Account for bytes before they are allocated.

        Raises:
            BudgetExceeded: they are not there; names `what` and the sizes.
        """
        if size_bytes > self.free_bytes:
            raise BudgetExceeded(
                f"{what} needs {spelled(size_bytes)} of the {self.name}, where {spelled(self.free_bytes)} of "
                f"{spelled(self.budget_bytes)} are free"
            )
        self.used_bytes += size_bytes
        self.peak_bytes = max(self.peak_bytes, self.used_bytes)

    def give(self, size_bytes: int) -> None:
        """Bytes that were taken are free again."""
        assert 0 <= size_bytes <= self.used_bytes, "more was given back than was taken"
        self.used_bytes -= size_bytes

    def __repr__(self) -> str:
        return f"<{self.name}: {spelled(self.used_bytes)} of {spelled(self.budget_bytes)} used>"
