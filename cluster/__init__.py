"""Who runs where and when: config, command line, training loops, worker handles, publishing, ledger, checkpoints."""
