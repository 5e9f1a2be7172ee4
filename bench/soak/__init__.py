"""What takes too long for CI: many kills of scripted workers, of vLLM's, and of a run that learns (`make soak`)."""
