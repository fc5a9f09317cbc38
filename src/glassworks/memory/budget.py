"""How much memory the keys and values of requests may take, tier by tier."""

from dataclasses import dataclass

from glassworks.errors import InputError
from glassworks.units import size_bytes, spelled


@dataclass(frozen=True)
class KVBudget:
    """What keys, values and what requests have saved so far may take, as sizes such as `"64MiB"`.

    Attributes:
        device: beside the weights; without an accelerator an emulated arena of this size in the host's memory.
        host: where requests wait whose turn it is not. disk: where they wait when the host is full; 0: nowhere.
    """

    device: str | int = "1GiB"
    host: str | int = "2GiB"
    disk: str | int = 0

    def __post_init__(self) -> None:
        if self.device_bytes == 0:
            raise InputError("the device needs a budget: a request runs there")

    @property
    def device_bytes(self) -> int:
        """Of the device."""
        return size_bytes(self.device)

    @property
    def host_bytes(self) -> int:
        """Of the host."""
        return size_bytes(self.host)

    @property
    def disk_bytes(self) -> int:
        """Of the disk."""
        return size_bytes(self.disk)

    def __str__(self) -> str:
        tiers = {"device": self.device_bytes, "host": self.host_bytes, "disk": self.disk_bytes}
        return ", ".join(f"{name} {spelled(size)}" for name, size in tiers.items() if size)
