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
    """In the reward, token by token, in the loss, or nowhere."""
    kind: Literal["k1", "k2", "k3"] | None = None
    """The estimator (Schulman 2020): k1 the log-ratio, k2 half its square, k3 the one that is never negative."""
    coef: NonNegative | None = None
    """Its weight; the start of it where `target` is set."""
    target: Positive | None = None
    """Sequence KL that the adaptive controller (Ziegler et al. 2019) holds; null: `coef` is fixed."""
    horizon: Count = 10_000
    """Samples over which the adaptive controller corrects."""


class Correction(Section):
    """Importance correction for the difference between engine and learner log-probs."""

    kind: Literal["none", "token_tis", "sequence_tis", "icepop"] | None = None
    """Default: none where every sample is of the newest weights, token_tis where the schedule lets them be older."""
    cap: Positive = 2.0
    """The most that a weight may be."""
    floor: NonNegative = 0.5
    """IcePop's lower bound; `cap` is its upper."""


class Preference(Section):
    """The loss on pairs. Unset: the method's own."""

    loss: Annotated[str, one_of(PREFERENCE_NAMES)] | None = None
    """Which loss; default: that of the method, `sigmoid` of dpo and online_dpo."""
    beta: Positive | None = None
    """Temperature of the implicit reward (IPO, SPPO: the regulariser; ORPO: the weight of the odds ratio)."""
    label_smoothing: float | None = Field(default=None, ge=0.0, lt=0.5)
    """Share of pairs believed to be labelled the wrong way round."""
    simpo_gamma: NonNegative | None = None
    """SimPO's target margin."""
    nll_coef: NonNegative | None = None
    """CPO's weight of the log-likelihood of the chosen response."""
    discopop_tau: float | None = Field(default=None, gt=0.0, le=1.0)
    """Temperature of DiscoPOP's blend."""
    desirable_weight: Positive | None = None
    """KTO's weight of desirable responses."""
    undesirable_weight: Positive | None = None
    """KTO's weight of undesirable responses."""
    pairs_per_step: Count = 8
    """Or judged responses, where data.labels.column names their judgement (kto)."""


class PolicyLoss(Section):
    """The token loss of an on-policy method. Unset: the preset's."""

    kind: Literal["clip", "cispo"] | None = None
    """PPO's clipped surrogate, or CISPO's detached weight."""
    ratio: Literal["token", "sequence_mean", "sequence_sum"] | None = None
    """Per token, or per response: from the mean (GSPO) or the sum (RLOO) of its log-ratios."""
    clip_low: NonNegative | None = None
    """The ratio is clipped below 1 - clip_low."""
    clip_high: NonNegative | None = None
    """The ratio is clipped above 1 + clip_high."""
    dual_clip: float | None = Field(default=None, gt=1.0)
    """Bounds the loss at so many times the advantage where that is negative (Ye et al. 2020)."""
    entropy_coef: float | None = None
    """Weight of the entropy bonus."""
    aggregation: (
        Literal["token-mean", "seq-mean-token-sum", "seq-mean-token-mean", "seq-mean-token-sum-norm"] | None
    ) = None
    """How token losses become one number: over all tokens, or over responses first."""
    filter_overlong: bool | None = None
    """Truncated responses leave the loss and the token count."""


class Sft(Section):
    """Supervised tuning on demonstrations."""

    rows_per_step: Count = 16
    """Demonstrations a step."""


class RewardModelling(Section):
    """Training a reward model, on pairs or (data.labels.column) on ratings."""

    rows_per_step: Count = 16
    """Pairs or rated responses a step."""
    centre_coef: NonNegative = 0.01
    """Weight of (r_c + r_r)^2, which holds the scores around 0. Pairs alone."""


class Resample(Section):
    """Dynamic sampling (DAPO): prompts whose responses all score the same are replaced before the update."""

    flat_groups: bool | None = None
    """Replace prompts whose responses all score the same; default: the method's."""
    rounds: Count = 10
    """Generations a step may take to find prompts that are not flat; then it learns from those it has."""


class Algorithm(Section):
    """The method. A name sets its paper's choices (docs/use/methods.md); each field overrides one."""

    name: Annotated[str, one_of(METHODS)]
    """The method, by its name in the tables of methods."""
    advantage: Annotated[str, one_of(ADVANTAGES)] | None = None
    """What a token's advantage is made of; default: the method's."""
    whiten: bool | None = None
    """Whiten advantages over the batch."""
    gamma: Fraction = 1.0
    """Discount a token."""
    gae_lambda: Fraction = 1.0
    """How far GAE looks ahead before it trusts the critic; 1: to the end."""
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
