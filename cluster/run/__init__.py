"""What a run leaves behind: its directory, ledger, metrics, samples, checkpoints and report.

In: facts, as they happen. Out: files that a resume, a report and a person can read (directory.py says which); requests
to a running driver (control.py); the watchdog's last deadline. Left out: what is decided by them (training).
"""
