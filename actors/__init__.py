"""What produces experience: prompts, rollout engines, reward functions and scorers. Knows nothing of Ray or optimisers."""
