"""Time and cost: clocks, tables of measured points that predict, the fingerprint of the hardware. No torch."""

from glassworks.measure.clock import Clock, RealClock, VirtualClock
from glassworks.measure.hardware import fingerprint
from glassworks.measure.table import CostTable, Point

__all__ = ["Clock", "CostTable", "Point", "RealClock", "VirtualClock", "fingerprint"]
