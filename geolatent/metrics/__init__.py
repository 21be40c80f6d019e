"""Metrics: what a step in latent space costs, and the maps that say so.

The room owns evaluation: Jacobian-vector products of a decoder and their checks, the metrics made
of them, chords between outputs, and how many rows go through a decoder at once. It imports the
checks and quantities at the top of the package and nothing above it: no curve, solver, model or
file. Besides itself it needs torch alone.
"""
