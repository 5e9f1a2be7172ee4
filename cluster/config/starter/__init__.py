"""A folder to start from: a recipe that ships with Raylign, over files of one's own.

In: a recipe's text, and what it says as a config. Out: the text of each file. Left out: which recipes there are and
writing files (cluster/commands/init.py), checking what was written (inspect).
"""
