"""`glassworks serve`."""


def serve() -> None:
    """Example: glassworks serve"""
