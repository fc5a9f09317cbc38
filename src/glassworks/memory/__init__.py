"""Memory with budgets: arenas, the links between them, and the one store of keys and values."""
