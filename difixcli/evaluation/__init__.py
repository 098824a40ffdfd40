"""Figures, protocols and reports: how close images are to the truth, and how that number was made."""
