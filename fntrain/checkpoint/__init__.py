"""Runs on disk: one verified commit a step, and single files of weights."""
