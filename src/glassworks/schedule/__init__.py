"""Who runs next: policies, the decision they share, and a simulator of both. No torch."""
