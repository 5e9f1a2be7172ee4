"""The real part and its plain twin pass the same suite."""
