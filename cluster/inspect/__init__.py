"""What can be known before a worker starts: the model's facts, a memory plan, the data and the rewards, this machine.

In: a checked Config. Out: problems and findings, as data; cluster/commands/check.py and cluster/commands/doctor.py
print them. Left out: Ray, engines, and what changes the machine (but a packaged model is unpacked into its cache, as a
run would do).
"""
