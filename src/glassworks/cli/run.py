"""`glassworks run`."""


def run() -> None:
    """Example: glassworks run"""
