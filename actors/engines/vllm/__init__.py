"""The engine on vLLM: the only folder that imports vLLM.

In: the engine contract's calls (actors/engines/interface.py). Out: the same as its twin's. environment.py is imported
before vLLM, port.py is what Raylign changes inside vLLM's worker, adapter.py what an adapter needs of it without vLLM.
Left out: scheduling between workers, proofs of weights.
"""
