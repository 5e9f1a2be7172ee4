"""Processes and who keeps them: the supervisor that starts drivers again, the keeper that holds cluster and leases
meanwhile, the driver's connection to Ray, and what is done about a run that is stuck.

In: a command, deadlines. Out: a driver that runs, an exit code, nothing left behind. Left out: what a driver does
(driver.py), the lease itself and the workers (workers).
"""
