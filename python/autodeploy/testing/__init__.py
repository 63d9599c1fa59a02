"""Helpers for tests: tiny random checkpoints, tolerances."""
