"""The verbs that the serving side adds to the command line, one file each.

In: arguments and options. Out: a server until it is stopped. Left out: everything behind them (app.py, session.py).
"""
