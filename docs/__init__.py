"""The documentation and what makes it. `tools` is code; everything else is pages and pictures."""
