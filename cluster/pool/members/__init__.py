"""Who is in the pool: each worker's state, how workers join, prove themselves, rest, leave, and are replaced.

In: a number of workers wanted, pulses, failures, the time. Out: members that serve, and events. member.py, recovery.py
and straggler.py decide and are pure; roster.py, spares.py and watch.py do. Left out: who gets which work
(cluster/pool/dispatch.py), the weights themselves (weights.py).
"""
