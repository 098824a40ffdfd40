"""View-conditioned diffusion: SparseFusion's networks (Zhou and Tulsiani, CVPR 2023, arXiv 2212.00792)."""
