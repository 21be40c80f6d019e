"""Adapters: decoders of other libraries, as the metrics want them.

The room owns the few lines between a model of another library and a decoder (n, d) -> Tensor. It
stands on the numerical part and imports no other library by itself: models are used by what they
have, so that nothing is needed but what the user has anyway. `docs/my-model.md` has the line for
each library.
"""

from geolatent.adapters.decoders import autoencoder, decoder, gplvm
from geolatent.adapters.distributions import metric
from geolatent.adapters.single_cell import scvi

__all__ = ["autoencoder", "decoder", "gplvm", "metric", "scvi"]
