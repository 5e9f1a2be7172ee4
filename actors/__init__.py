"""What produces experience: prompts, rollout engines, rewards and scorers. Knows nothing of Ray or optimisers."""
