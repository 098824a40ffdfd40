"""Figures, protocols and reports: how close images are to the truth, and how that number was made."""

from difixcli.evaluation.evaluate import evaluate_folders, evaluate_run

__all__ = ["evaluate_folders", "evaluate_run"]
