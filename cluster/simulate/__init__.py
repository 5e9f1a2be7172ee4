"""A run without workers: the driver's own dispatch, admission and autoscaling against workers that are only times.

In: times measured in a run's directory (fit.py), a number of workers and a schedule. Out: a step's seconds and idle
shares (run.py), for plans (`raylign plan`) and for scales that no test machine has. Pure: simulated time, no Ray, no
sleeping. Left out: memory (cluster/inspect/memory.py).
"""
