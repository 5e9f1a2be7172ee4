"""The rollout pool: workers come and go while a run goes on; work goes to whom it suits and moves when they leave.

Deciding (dispatch.py, admission.py, autoscale.py, cluster/pool/members/straggler.py, cluster/pool/members/member.py) is
pure and apart from doing (core.py, cluster/pool/members/watch.py); Ray is behind `RolloutHandle`
(cluster/workers/rollout.py).
"""
