"""Learning: clusters, classes and densities under a metric, as scikit-learn's estimators.

The room owns k-means, nearest neighbours and the locally adaptive normal distribution. It imports
the geometry and all below it, and no model or file. Besides itself it needs torch, numpy and
scikit-learn.

Codes go in as arrays, tables or tensors, all checked by scikit-learn's own validation; ``fit``
brings them to the dtype and device of the decoder's parameters or of the graph that was given, or
leaves them as they are where there is neither, and every other method brings them to those of
``fit``. What comes out, attributes included, are NumPy arrays, whatever went in. A clone shares the
metric and the graph with its original.
"""
