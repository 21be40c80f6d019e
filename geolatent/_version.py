"""The version of geolatent."""

__version__ = "0.1.0"
