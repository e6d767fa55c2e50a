"""The page of a training run, or of several side by side: one self-contained HTML file."""

from training.report.page import write_page

__all__ = ["write_page"]
