"""Benchmarks, each a program that prints one table."""
