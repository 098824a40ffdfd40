"""Making (render, photo) pairs from posed scenes: one file a strategy, the manifest, and the driver."""
