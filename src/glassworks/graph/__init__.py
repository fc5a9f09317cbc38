"""The idea of the package, on the standard library alone: an experiment as data."""
