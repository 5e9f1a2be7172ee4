"""The kinds of run: what the verbs of a page (cluster/ppo.py and its siblings) do.

In: a checked config, its inputs, workers. Out: one class a kind, `Job` the ground of all (clock, records, commits),
`OnlineJob` and `OfflineJob` what most share. Left out: the order of a step (the pages), what several kinds are put
together from (parts), the process around a run (driver.py).
"""
