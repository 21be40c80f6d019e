"""Learning: clusters, classes and densities under a metric, as scikit-learn's estimators.

The room owns k-means, nearest neighbours and the locally adaptive normal distribution. It imports
the geometry and all below it, and no model or file. Besides itself it needs torch, numpy and
scikit-learn.
"""
