"""The tuned policy behind Ray Serve. Never trains."""
