"""The command line's verbs, one file each. Importing one must be cheap: heavy imports stand inside its function.

In: arguments and options. Out: text or `--json`, an exit code (0 done, 1 the run failed, 2 the input is wrong). Left
out: what a verb does, which is a room's of its own.
"""
