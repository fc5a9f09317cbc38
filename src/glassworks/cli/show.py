"""`glassworks show`."""


def show() -> None:
    """Example: glassworks show"""
