"""A folder of records as one readable page: ``redraft report DIR``."""

from redraft.reporting.page import page, report

__all__ = ["page", "report"]
