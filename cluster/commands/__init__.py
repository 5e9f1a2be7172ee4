"""The command line's verbs, one file each. Importing one must be cheap: heavy imports stand inside its function."""
