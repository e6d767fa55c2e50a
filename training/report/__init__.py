"""The page of a training run, or of several side by side: one self-contained HTML file."""

from training.report.page import section, write_page

__all__ = ["section", "write_page"]
