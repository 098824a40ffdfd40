"""Many scenes on many machines: who works on which, how far it is, and SLURM through submitit."""
