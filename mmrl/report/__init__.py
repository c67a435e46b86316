"""The page about runs, and what is read from their folders. Loads no torch."""

from mmrl.report.page import describe, verdict_lines, write_report
from mmrl.report.runs import merged_warnings, read_summary

__all__ = ["describe", "merged_warnings", "read_summary", "verdict_lines", "write_report"]
