"""Where training data comes from: prompts, their order, and preference pairs, tokenised once.

In: JSONL, Parquet, a `datasets` directory or hub id, or a reasoning_gym task, plus a tokenizer. Out: frozen rows of
token ids, in which only the chat template has written control tokens. Nothing here imports torch: the driver and
`raylign check` read data without it. Left out: batching, shuffling across workers, and the tokenizer itself (the caller
loads it).
"""

from actors.data.errors import DataError
from actors.data.order import PromptOrder
from actors.data.preferences import PreferencePair, PreferenceSettings, load_preferences
from actors.data.prompts import PromptSettings, PromptSource, load_prompts, train_and_heldout
from actors.data.stored import StoredRows

__all__ = [
    "DataError",
    "PreferencePair",
    "PreferenceSettings",
    "PromptOrder",
    "PromptSettings",
    "PromptSource",
    "StoredRows",
    "load_preferences",
    "load_prompts",
    "train_and_heldout",
]
