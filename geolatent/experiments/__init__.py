"""Experiments: library functions that commands wrap."""
