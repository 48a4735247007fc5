"""Scaling laws: isoFLOP sweeps, fits with intervals, methods against each other as multipliers of compute."""
