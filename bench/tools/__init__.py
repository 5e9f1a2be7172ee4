"""What several benches share: a small model and recipe, engines that keep time, rollout workers as plain processes."""
