"""What training will use of a data set and what it will drop, before it starts."""

from psis_d2.check.dataset import DatasetCheck, check_dataset, check_validation
from psis_d2.check.page import html_page

__all__ = ["DatasetCheck", "check_dataset", "check_validation", "html_page"]
