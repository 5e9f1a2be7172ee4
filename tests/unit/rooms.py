"""The house: its rooms from the ground up, and the rooms that each may import. `test_law.py` holds the code to it.

A room is a folder; the files at a package's top (`cluster`: the pages, the driver) are one too. A room imports downward
only: a row names rooms of earlier rows alone, so there are no circles. A package's facade (`__init__.py`) may hand out
what its own rooms hold. A new arrow is a name here, where a reviewer sees it; one that nobody uses any more has to go.
"""

_TABLE = {
    "actors": "",
    "actors/data": "actors",
    "actors/transports": "actors",
    "actors/models": "actors actors/data actors/transports",
    "actors/engines": "actors actors/transports actors/models",
    "actors/rewards": "actors actors/data actors/models",
    "actors/engines/vllm": "actors actors/transports actors/models actors/engines",
    "actors/rollouts": "actors actors/transports actors/engines",
    "learners/engines": "actors/models",
    "learners/methods": "actors learners/engines",
    "learners": "actors actors/transports actors/models learners/engines learners/methods",
    "cluster/config/sections": "learners/methods",
    "cluster/experience": "actors actors/rollouts",
    "cluster/pool/members": "actors actors/transports actors/rollouts cluster/experience",
    "cluster/pool": "actors actors/transports actors/rollouts cluster/experience cluster/pool/members",
    "cluster/roles": "actors actors/transports actors/models actors/engines actors/rewards "
    "actors/engines/vllm actors/rollouts learners/engines learners/methods learners "
    "cluster/pool/members",
    "cluster/config": "actors actors/models actors/engines learners/engines learners/methods "
    "cluster/config/sections cluster/pool/members cluster/pool",
    "cluster/config/rules": "actors/models learners/methods cluster/config/sections cluster/config",
    "cluster/inputs": "actors/data actors/rewards cluster/config",
    "cluster/workers": "actors actors/transports actors/engines actors/rollouts learners/methods "
    "cluster/experience cluster/pool/members cluster/roles cluster/config",
    "cluster/config/loading": "cluster/config/sections cluster/config cluster/config/rules",
    "cluster/config/starter": "cluster/config cluster/config/loading",
    "cluster/run": "actors actors/models cluster/config cluster/config/rules cluster/config/loading",
    "cluster/inspect": "actors/data actors/models actors/engines actors/rewards cluster/config/sections "
    "cluster/config cluster/inputs cluster/workers cluster/config/loading cluster/run",
    "cluster/run/records": "actors/rollouts cluster/config cluster/run",
    "cluster/service": "cluster/config cluster/config/loading cluster/run",
    "cluster/life": "cluster/pool/members cluster/roles cluster/workers cluster/run/records",
    "cluster/run/checkpoints": "actors cluster/run cluster/run/records",
    "cluster/simulate": "actors cluster/pool/members cluster/pool cluster/run/records",
    "cluster/run/report": "actors/rollouts learners/methods cluster/config cluster/run cluster/run/records "
    "cluster/run/checkpoints",
    "cluster/training/parts": "actors actors/models actors/engines actors/rewards learners/methods "
    "cluster/config/sections cluster/experience cluster/pool/members cluster/pool "
    "cluster/roles cluster/config cluster/inputs cluster/workers cluster/run "
    "cluster/inspect cluster/run/records cluster/run/checkpoints",
    "cluster/training": "actors actors/data actors/engines actors/rollouts learners/methods "
    "cluster/experience cluster/pool/members cluster/pool cluster/roles "
    "cluster/config cluster/inputs cluster/workers cluster/run cluster/run/records "
    "cluster/run/checkpoints cluster/run/report cluster/training/parts",
    "cluster": "actors actors/data actors/models actors/rewards cluster/config/sections "
    "cluster/roles cluster/config cluster/config/rules cluster/inputs cluster/workers "
    "cluster/config/loading cluster/run cluster/run/records cluster/life "
    "cluster/run/report cluster/training/parts cluster/training",
    "cluster/commands": "actors/data actors/models learners/engines learners cluster/config/sections "
    "cluster/roles cluster/config cluster/workers cluster/config/loading "
    "cluster/config/starter cluster/run cluster/inspect cluster/run/records "
    "cluster/service cluster/life cluster/run/checkpoints cluster/simulate "
    "cluster/run/report cluster",
    "serve": "actors/data",
    "serve/commands": "serve",
}

MAY_IMPORT = {room: frozenset(allowed.split()) for room, allowed in _TABLE.items()}

OPEN_TO_ALL = {"cluster": "errors.py"}
"""A package's file that each of its rooms may import."""

MOST_ENTRIES = 14
"""Of a folder, __init__.py apart. The checkout's top and a package's hold at most so many files and so many
rooms."""

ANY_NUMBER = {"cluster/commands", "deploy/recipes", "deploy/recipes/gpu", "tests"}
"""A file a verb; recipes; tests of a room, wherever they lie."""
