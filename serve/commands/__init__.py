"""The verbs that the serving side adds to the command line, one file each."""
