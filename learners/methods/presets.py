"""What each method's name stands for: settings and presets, data only.

In: nothing. Out: `PolicyLossSettings`, `PreferenceSettings`, `Preset` and `PRESETS`, the table of the on-policy methods
with their papers' choices, and its counterpart for pairs. Every field stays overridable (`dataclasses.replace`).
Imports without torch, so that the config can read it. Left out on purpose: tensors (`policy_losses`,
`preference_losses`, `advantages` do the maths) and what only a run knows (sampling lengths, the horizon L of
`seq-mean-token-sum-norm`).
"""

from __future__ import annotations

from dataclasses import dataclass

RATIO_NAMES = ("token", "sequence_mean", "sequence_sum")
KIND_NAMES = ("clip", "cispo")
KL_KINDS = ("k1", "k2", "k3")
KL_PLACES = ("none", "reward", "loss")
CORRECTION_NAMES = ("none", "token_tis", "sequence_tis", "icepop")
AGGREGATIONS = ("token-mean", "seq-mean-token-sum", "seq-mean-token-mean", "seq-mean-token-sum-norm")


@dataclass(frozen=True, slots=True)
class PreferenceLoss:
    """reference: it compares with a frozen reference. averaged: over log-probs divided by the token count."""

    reference: bool = True
    averaged: bool = False


PREFERENCE_LOSSES: dict[str, PreferenceLoss] = {
    "sigmoid": PreferenceLoss(),
    "robust": PreferenceLoss(),
    "hinge": PreferenceLoss(),
    "ipo": PreferenceLoss(averaged=True),
    "exo_pair": PreferenceLoss(),
    "nca_pair": PreferenceLoss(),
    "sppo_hard": PreferenceLoss(),
    "apo_zero": PreferenceLoss(),
    "apo_down": PreferenceLoss(),
    "discopop": PreferenceLoss(),
    "kto": PreferenceLoss(),
    "orpo": PreferenceLoss(reference=False, averaged=True),
    "simpo": PreferenceLoss(reference=False, averaged=True),
    "cpo": PreferenceLoss(reference=False),
}
"""Each is a function of that name in preference_formulas.py."""

PREFERENCE_NAMES = tuple(PREFERENCE_LOSSES)
REFERENCE_FREE = tuple(name for name, loss in PREFERENCE_LOSSES.items() if not loss.reference)


def _one_of(field: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise ValueError(f"{field} is {value!r}; set it to one of {', '.join(known)}.")


@dataclass(frozen=True, slots=True)
class PolicyLossSettings:
    """One policy loss. Clipping keeps the ratio within [1 - clip_low, 1 + clip_high].

    ratio: per token, or per row from the row's mean (GSPO) or sum (RLOO) of log-ratios.
    dual_clip: bound c > 1 of the loss where the advantage is negative, c * |A|; None: off.
    kl_kind: the KL estimator added to the loss with weight kl_coef; None: no KL in the loss.
    horizon: L of `seq-mean-token-sum-norm`, in tokens; other aggregations ignore it.
    correction: importance weight exp(old - roll), capped at `correction_cap` (truncated IS), or zeroed outside
    [correction_floor, correction_cap] (IcePop).
    """

    ratio: str = "token"
    kind: str = "clip"
    clip_low: float = 0.2
    clip_high: float = 0.2
    dual_clip: float | None = None
    kl_kind: str | None = None
    kl_coef: float = 0.0
    entropy_coef: float = 0.0
    aggregation: str = "token-mean"
    horizon: float | None = None
    correction: str = "none"
    correction_cap: float = 2.0
    correction_floor: float = 0.5

    def __post_init__(self) -> None:
        _one_of("ratio", self.ratio, RATIO_NAMES)
        _one_of("kind", self.kind, KIND_NAMES)
        _one_of("aggregation", self.aggregation, AGGREGATIONS)
        _one_of("correction", self.correction, CORRECTION_NAMES)
        if self.kl_kind is not None:
            _one_of("kl_kind", self.kl_kind, KL_KINDS)
        if self.dual_clip is not None and not self.dual_clip > 1.0:
            raise ValueError(f"dual_clip is {self.dual_clip}; set it above 1 (3 is usual), or to None to turn it off.")


@dataclass(frozen=True, slots=True)
class PreferenceSettings:
    """One preference loss.

    beta: temperature of the implicit reward (IPO, SPPO: the regulariser; ORPO: the weight lambda of the odds ratio).
    label_smoothing: share e of pairs believed to be labelled the wrong way round (sigmoid: cDPO; robust; exo_pair).
    simpo_gamma: SimPO's target margin. nll_coef: CPO's alpha. discopop_tau: temperature of DiscoPOP's blend.
    desirable_weight, undesirable_weight: KTO's lambda_D and lambda_U. judged: rows are single responses with a label,
    not pairs (KTO alone).
    """

    loss: str = "sigmoid"
    beta: float = 0.1
    label_smoothing: float = 0.0
    simpo_gamma: float = 0.5
    nll_coef: float = 1.0
    discopop_tau: float = 0.05
    desirable_weight: float = 1.0
    undesirable_weight: float = 1.0
    judged: bool = False

    def __post_init__(self) -> None:
        _one_of("loss", self.loss, PREFERENCE_NAMES)
        if self.judged and self.loss != "kto":
            raise ValueError(f"loss {self.loss} compares two responses; only kto learns from single judged ones.")
        if not self.beta > 0.0:
            raise ValueError(f"beta is {self.beta}; set it above 0 (0.1 is usual).")
        if not 0.0 <= self.label_smoothing < 0.5:
            raise ValueError(f"label_smoothing is {self.label_smoothing}; set it to at least 0 and below 0.5.")
        if not 0.0 < self.discopop_tau <= 1.0:
            raise ValueError(f"discopop_tau is {self.discopop_tau}; set it above 0 and at most 1 (0.05 is published).")


@dataclass(frozen=True, slots=True)
class RewardModelSettings:
    """Training a reward model: on pairs (Bradley-Terry) or, where `ratings`, on numbers that responses were given.

    centre_coef: weight of (r_c + r_r)^2 in the loss on pairs.
    """

    ratings: bool = False
    centre_coef: float = 0.01


@dataclass(frozen=True, slots=True)
class Preset:
    """A method's published choices.

    advantage: gae, reinforce_pp, or a function of row_advantages.py; whiten: advantages whitened over the whole batch
    afterwards.
    kl_place: none, reward (per token, `-kl_coef * kl_kind(old, ref)`) or loss (then `loss.kl_kind`, `loss.kl_coef`
    say the same). score_includes_kl: the reward's KL, summed over the row, is part of the group score S (RLOO alone).
    critic: a value model is trained. grouped: several samples per prompt are needed.
    resample_flat_groups: groups whose scores are all equal are replaced by new ones before the update (DAPO).
    filter_overlong: truncated rows leave the loss and the token count (DAPO).
    """

    advantage: str
    loss: PolicyLossSettings
    whiten: bool = False
    kl_place: str = "none"
    kl_kind: str = "k1"
    kl_coef: float = 0.0
    score_includes_kl: bool = False
    critic: bool = False
    grouped: bool = True
    resample_flat_groups: bool = False
    filter_overlong: bool = False

    def __post_init__(self) -> None:
        _one_of("kl_place", self.kl_place, KL_PLACES)
        _one_of("kl_kind", self.kl_kind, KL_KINDS)


PRESETS: dict[str, Preset] = {
    "ppo": Preset(  # Schulman et al. 2017; Ouyang et al. 2022
        advantage="gae",
        whiten=True,
        critic=True,
        grouped=False,
        kl_place="reward",
        kl_coef=0.05,
        loss=PolicyLossSettings(),
    ),
    "grpo": Preset(  # Shao et al. 2024
        advantage="grpo",
        kl_place="loss",
        kl_kind="k3",
        kl_coef=0.04,
        loss=PolicyLossSettings(kl_kind="k3", kl_coef=0.04, aggregation="seq-mean-token-mean"),
    ),
    "dr_grpo": Preset(  # Liu et al. 2025
        advantage="dr_grpo",
        loss=PolicyLossSettings(aggregation="seq-mean-token-sum-norm"),
    ),
    "rloo": Preset(  # Ahmadian et al. 2024
        advantage="rloo",
        kl_place="reward",
        kl_coef=0.05,
        score_includes_kl=True,
        loss=PolicyLossSettings(ratio="sequence_sum", aggregation="seq-mean-token-sum"),
    ),
    "reinforce_pp": Preset(  # Hu 2025
        advantage="reinforce_pp",
        whiten=True,
        grouped=False,
        kl_place="reward",
        kl_coef=0.01,
        loss=PolicyLossSettings(),
    ),
    "reinforce_pp_baseline": Preset(  # Hu 2025
        advantage="reinforce_pp_baseline",
        whiten=True,
        kl_place="loss",
        kl_kind="k2",
        kl_coef=0.01,
        loss=PolicyLossSettings(kl_kind="k2", kl_coef=0.01),
    ),
    "remax": Preset(  # Li et al. 2023: REINFORCE against the greedy response; k2 in the loss has the KL's own gradient
        advantage="remax",
        grouped=False,
        kl_place="loss",
        kl_kind="k2",
        kl_coef=0.05,
        loss=PolicyLossSettings(kl_kind="k2", kl_coef=0.05, aggregation="seq-mean-token-sum"),
    ),
    "opo": Preset(  # Hao et al. 2025: exactly on-policy, neither KL nor entropy bonus
        advantage="opo",
        loss=PolicyLossSettings(aggregation="seq-mean-token-sum"),
    ),
    "dapo": Preset(  # Yu et al. 2025
        advantage="grpo",
        resample_flat_groups=True,
        filter_overlong=True,
        loss=PolicyLossSettings(clip_high=0.28),
    ),
    "gspo": Preset(  # Zheng et al. 2025
        advantage="grpo",
        loss=PolicyLossSettings(
            ratio="sequence_mean", clip_low=3e-4, clip_high=4e-4, aggregation="seq-mean-token-mean"
        ),
    ),
    "cispo": Preset(  # MiniMax 2025; clip_low 1 puts the lower bound at 0: only the upper one acts
        advantage="grpo",
        loss=PolicyLossSettings(kind="cispo", clip_low=1.0, clip_high=0.28),
    ),
}


TOKEN_ADVANTAGES = ("gae", "reinforce_pp")
"""Made of rewards per token, which may hold the token KL and may be discounted."""
ADVANTAGES = tuple(dict.fromkeys(preset.advantage for preset in PRESETS.values()))
GROUP_ADVANTAGES = tuple(dict.fromkeys(preset.advantage for preset in PRESETS.values() if preset.grouped))
"""Compare samples of one prompt."""

PREFERENCE_PRESETS: dict[str, PreferenceSettings] = {
    "dpo": PreferenceSettings(),  # Rafailov et al. 2023; its relatives by `loss`
    "online_dpo": PreferenceSettings(),  # Guo et al. 2024 (OAIF)
    "kto": PreferenceSettings(loss="kto"),  # Ethayarajh et al. 2024
    "orpo": PreferenceSettings(loss="orpo"),  # Hong et al. 2024
    "simpo": PreferenceSettings(loss="simpo", beta=2.0, simpo_gamma=1.0),  # Meng et al. 2024, gamma / beta = 0.5
    "cpo": PreferenceSettings(loss="cpo"),  # Xu et al. 2024
}

PREFERENCE_FIELDS = {
    "label_smoothing": ("sigmoid", "robust", "exo_pair"),
    "simpo_gamma": ("simpo",),
    "nll_coef": ("cpo",),
    "discopop_tau": ("discopop",),
    "desirable_weight": ("kto",),
    "undesirable_weight": ("kto",),
}
"""Which losses a field acts in; `beta` acts in all."""


def preset(name: str) -> Preset:
    """The preset of a method; ValueError naming the known ones."""
    _one_of("algorithm.name", name, tuple(PRESETS))
    return PRESETS[name]
