"""The rollout pool: workers come and go while a run goes on; work goes to whom it suits and moves when they leave.

In: prompts as tickets, weights, a number of workers wanted. Out: samples, each once, and events. Deciding (dispatch.py,
admission.py, autoscale.py, and in members/ who may be lost, how slow is too slow) is pure and apart from doing
(core.py, members/watch.py). Left out: Ray, which is behind `RolloutHandle` (cluster/workers/rollout.py).
"""
