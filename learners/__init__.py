"""What consumes experience: advantages, losses, batches, ZeRO engines, one learner rank. Knows nothing of Ray or vLLM."""
