"""Super-resolution that stays 3D-consistent: 3DSR (Chen et al., ICCV 2025, arXiv 2508.04090)."""
