"""`report.html`: a run as one page that needs no network. The page is drawn in the browser from embedded data.

In: a run directory. Out: the file's path. `data.py` gathers, `excerpt.py` picks samples, `page.py` renders. Left out:
what is worth recording (records).
"""

from cluster.run.report.page import write_report

__all__ = ["write_report"]
