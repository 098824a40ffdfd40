"""Figures, protocols and reports: how close images are to the truth, and how that number was made."""

from difixcli.evaluation.evaluate import Plan, evaluate_folders, evaluate_run, evaluate_runs

__all__ = ["Plan", "evaluate_folders", "evaluate_run", "evaluate_runs"]
