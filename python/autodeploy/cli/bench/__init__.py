"""Measurements, side by side: each engine in a process of its own, in rounds that take turns."""
