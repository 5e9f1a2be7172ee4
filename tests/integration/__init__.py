"""Real Ray, vLLM, DeepSpeed and models, whole."""
