"""What a config must keep beyond each key's own type: rules over two keys or more, and what a resume may change.

In: a Config whose sections are each valid. Out: `Problem`s, all of them (general.py asks the others); nothing is
changed and nothing heavy imported. Left out: what needs the model's files, the data or the machine (inspect).
"""
