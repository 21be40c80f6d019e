"""Solvers: curves made shorter, many at once.

The room owns what a solver gets and gives, the energy that is lowered, the minimiser and the three
solvers. It imports the metrics and the curves at the top of the package, and no model or file.
Besides itself it needs torch alone.
"""
