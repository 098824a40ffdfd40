"""nerfstudio behind one small interface, and the CPU splat rasteriser."""
