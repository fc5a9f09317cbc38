"""Requests run here: the local backend, and the one generation loop."""
