"""What a run leaves behind: its directory, ledger, metrics, samples, checkpoints and report."""
