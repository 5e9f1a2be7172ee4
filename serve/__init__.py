"""The tuned policy behind Ray Serve.

In: a run or an exported policy. Out: an OpenAI-compatible API whose answers name the policy version. Left out:
training; the import law keeps `learners` and `cluster` out.
"""
