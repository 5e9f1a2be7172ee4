"""A run without workers: the driver's own dispatch, admission and autoscaling against workers that are only times.

For plans (`raylign plan`) and for scales that no test machine has. Pure: simulated time, no Ray, no sleeping.
"""
