"""The commit: what a run can go back to.

In: what roles and driver write into a staging folder. Out: `checkpoints/step-N/` whose manifest, written last, is the
only commit; the newest that verifies. Left out: what a learner's files hold (learners), cutting records back to a
commit (cluster/run/directory.py).
"""
