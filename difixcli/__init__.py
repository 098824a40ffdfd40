"""difix: makes bad 3D reconstructions good."""

__version__ = "0.1.0"
