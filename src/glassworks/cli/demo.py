"""`glassworks demo`."""


def demo() -> None:
    """Example: glassworks demo"""
