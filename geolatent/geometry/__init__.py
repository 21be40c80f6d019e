"""Geometry: what geodesics are good for.

The room owns exponential and logarithm maps, distances, volume and curvature, means and Brownian
motion. It imports the metrics, the solvers and `solve_geodesic`, and no model or file. Besides
itself it needs torch alone.
"""
