"""What runs inside a worker process, one file a role."""
