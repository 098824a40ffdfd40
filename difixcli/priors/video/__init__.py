"""Video priors: pictures along the way between two photos, made together (ReconX, Liu et al., arXiv 2408.16767)."""
