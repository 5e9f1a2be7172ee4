"""Runs as a service: jobs submitted to a Ray cluster, and changes of one that is under way.

In: a recipe or a job's name, from any machine that reaches the job server. Out: submissions, states, logs, answers of a
running driver. Left out: the run itself (driver.py), the files that a request travels in (run/control.py).
"""
