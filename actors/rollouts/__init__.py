"""One rollout worker: prompts go in, samples with log-probs and the versions that made them come out.

In: prompts by the ticket, weight buckets, a publish's deadlines. Out: `SampleBatch`es, an identity proof of the buckets
received (reception.py) and an application proof (the probe of actors/engines). `server.py` runs a worker in a thread of
its own, `generation.py` is one call in the making, `pace.py` and `spans.py` say how fast and since when. Left out: Ray,
the pool of workers (cluster/pool), what a response is worth (actors/rewards).
"""
