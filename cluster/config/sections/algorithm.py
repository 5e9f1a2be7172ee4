"""The `algorithm` section: data only. What a method's name stands for is in learners/methods/presets.py.

In: nothing. Out: pydantic models; a field that is not set is the preset's. Left out: which fields a method has no use
for (cluster/config/rules/general.py, cluster/config/rules/offline.py).
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from cluster.config.sections.section import Count, Fraction, NonNegative, Positive, Section, one_of
from learners.methods.presets import ADVANTAGES, PREFERENCE_NAMES, PREFERENCE_PRESETS, PRESETS

METHODS = (*PRESETS, *PREFERENCE_PRESETS, "sft", "reward_model")


class KL(Section):
    """The leash to the reference. place: in the reward (PPO's way) or in the loss (GRPO's). Unset: the preset's."""

    place: Literal["none", "reward", "loss"] | None = None
    kind: Literal["k1", "k2", "k3"] | None = None
    coef: NonNegative | None = None
    target: Positive | None = None
    """Sequence KL that the adaptive controller (Ziegler et al. 2019) holds; None: `coef` is fixed."""
    horizon: Count = 10_000
    """Samples over which the adaptive controller corrects."""


class Correction(Section):
    """Importance correction for the difference between engine and learner log-probs."""

    kind: Literal["none", "token_tis", "sequence_tis", "icepop"] | None = None
    """Default: none where every sample is of the newest weights, token_tis where the schedule lets them be older."""
    cap: Positive = 2.0
    floor: NonNegative = 0.5
    """IcePop's lower bound; `cap` is its upper."""


class Preference(Section):
    """The loss on pairs. Unset: the method's own."""

    loss: Annotated[str, one_of(PREFERENCE_NAMES)] | None = None
    beta: Positive | None = None
    label_smoothing: float | None = Field(default=None, ge=0.0, lt=0.5)
    """Share of pairs believed to be labelled the wrong way round."""
    simpo_gamma: NonNegative | None = None
    nll_coef: NonNegative | None = None
    discopop_tau: float | None = Field(default=None, gt=0.0, le=1.0)
    desirable_weight: Positive | None = None
    undesirable_weight: Positive | None = None
    pairs_per_step: Count = 8
    """Or judged responses, where data.labels.column names their judgement (kto)."""


class PolicyLoss(Section):
    """The token loss of an on-policy method. Unset: the preset's."""

    kind: Literal["clip", "cispo"] | None = None
    ratio: Literal["token", "sequence_mean", "sequence_sum"] | None = None
    """Per token, or per response: from the mean (GSPO) or the sum (RLOO) of its log-ratios."""
    clip_low: NonNegative | None = None
    clip_high: NonNegative | None = None
    dual_clip: float | None = Field(default=None, gt=1.0)
    entropy_coef: float | None = None
    aggregation: (
        Literal["token-mean", "seq-mean-token-sum", "seq-mean-token-mean", "seq-mean-token-sum-norm"] | None
    ) = None
    filter_overlong: bool | None = None
    """Truncated responses leave the loss and the token count."""


class Sft(Section):
    """Supervised tuning on demonstrations."""

    rows_per_step: Count = 16


class RewardModelling(Section):
    """Training a reward model, on pairs or (data.labels.column) on ratings."""

    rows_per_step: Count = 16
    centre_coef: NonNegative = 0.01
    """Weight of (r_c + r_r)^2, which holds the scores around 0. Pairs alone."""


class Resample(Section):
    """Dynamic sampling (DAPO): prompts whose responses all score the same are replaced before the update."""

    flat_groups: bool | None = None
    rounds: Count = 10
    """Generations a step may take to find prompts that are not flat; then it learns from those it has."""


class Algorithm(Section):
    """The method. A name sets its paper's choices (METHODS in the README's table); each field overrides one."""

    name: Annotated[str, one_of(METHODS)]
    advantage: Annotated[str, one_of(ADVANTAGES)] | None = None
    whiten: bool | None = None
    """Whiten advantages over the batch."""
    gamma: Fraction = 1.0
    gae_lambda: Fraction = 1.0
    loss: PolicyLoss = PolicyLoss()
    kl: KL = KL()
    correction: Correction = Correction()
    resample: Resample = Resample()
    preference: Preference = Preference()
    """Of the methods that compare responses."""

    sft: Sft = Sft()
    reward_model: RewardModelling = RewardModelling()

    @property
    def on_preferences(self) -> bool:
        """Whether a preference loss on stored rows is minimised."""
        return self.name in PREFERENCE_PRESETS and self.name != "online_dpo"

    @property
    def online(self) -> bool:
        """Whether the run makes its own samples; otherwise it learns from stored rows."""
        return not self.on_preferences and self.name not in ("sft", "reward_model")
