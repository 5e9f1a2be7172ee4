"""What consumes experience: advantages, losses, ZeRO engines, one learner rank. Knows nothing of Ray or vLLM."""
