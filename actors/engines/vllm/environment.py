"""Environment that vLLM reads when it is imported or when an engine starts: import this first.

In: nothing. Out: variables of this process. Left out: importing vLLM (engine.py). In process, quiet, nothing sent
home; our threads, not vLLM's binding of them to cores. A sequence of exactly max_model_len tokens must be scorable,
which takes vLLM one position more than the model may have (it is never fed).
"""

from __future__ import annotations

import os

os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
os.environ["VLLM_USE_V2_MODEL_RUNNER"] = "0"  # the other runner samples on the device by other rules
os.environ["VLLM_ALLOW_LONG_MAX_MODEL_LEN"] = "1"
os.environ.setdefault("VLLM_WORKER_MULTIPROC_METHOD", "spawn")  # a fork would inherit this process's groups
os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
os.environ.setdefault("DO_NOT_TRACK", "1")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
