"""Settings of what every run does: its prompts and its stages."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator, model_validator

from rasa_moe.config.fields import (
    Count,
    CountOrZero,
    Finite,
    Names,
    NotNegative,
    Number,
    PartOfOne,
    Positive,
    Section,
    Switch,
    Text,
)


class DataConfig(Section):
    """Say which prompts are used and who judges the answers."""

    source: Text = Field(
        "testbed",
        description="'testbed' for the built-in prompts; a JSONL, CSV, JSON or Parquet file; a data set of "
        "the hub as hf:owner/name@revision#split; a public set by name; or several, joined by ' + '.",
    )
    columns: Names = Field(
        (), description="Which column of the source holds what, such as [goal=Behavior]; empty to guess."
    )
    kind: Literal["harmful", "harmless", "question", "ability"] = Field(
        "harmful", description="What the prompts are where the source does not say so itself."
    )
    limit: Count | None = Field(None, description="Most rows taken from one source; null for all of them.")
    attacks: Names = Field(
        (), description="Attacks that the run puts around plain goals itself; see rasa-moe attack --list."
    )
    judge: Text = Field(
        "auto",
        description="Who tells harmful answers: 'auto' (exact for the testbed, else rules) or a judge.",
    )


class CollectConfig(Section):
    """Set how pairs of a working jailbreak and a refused plain request are gathered."""

    families: Names = Field(
        (), description="Attack families to collect from; empty for every family of the train split."
    )
    goals_per_family: Count | None = Field(
        None, description="Most goals tried in one family; null for all of them."
    )
    max_new_tokens: Count = Field(64, description="Longest answer, in tokens.")
    batch_tokens: Count = Field(
        8192, description="Tokens in one generation batch, padding included; less needs less memory."
    )
    mutations: CountOrZero = Field(
        1,
        description="Further copies of every wrapped request, harmful and harmless, with words of the "
        "wrapping dropped, replaced, repeated or joined by others; 0 for none.",
    )
    openings: CountOrZero = Field(
        0,
        description="Further answers to one jailbreak of each goal, begun with so many likely first tokens; "
        "refusals are learned in the middle of the harmful ones as well. 0 for none.",
    )
    retain_rows: int = Field(
        2048,
        ge=0,
        description="Harmless conversations, with the model's own answers, kept to protect its abilities.",
    )


class DetectConfig(Section):
    """Set how the experts that answer jailbreaks are told from the others."""

    span: Literal["response", "prompt", "both", "last_prompt", "deciding"] = Field(
        "last_prompt",
        description="Tokens whose routing counts; 'last_prompt': the one at which the answer is decided; "
        "'deciding': those that predict a response token.",
    )
    anchor_weight: NotNegative = Field(
        0.5,
        description="Experts are ranked by P(active | jailbreak) - anchor_weight * P(active | plain); 1 is "
        "the paper's discrepancy, which passes over experts that both use.",
    )
    budget: Finite | Number | None = Field(
        0.125,
        description="Experts to select: a share of all (0.125) or a count (128); null to use the threshold.",
    )
    threshold: Finite | None = Field(
        None, description="Select every expert whose score exceeds this; needs budget: null."
    )
    bootstrap: Count = Field(1000, description="Resamples of the pairs behind each interval.")

    @field_validator("budget")
    @classmethod
    def _budget_is_share_or_count(cls, value: float | int | None) -> float | int | None:
        if isinstance(value, int) and value < 1:
            raise ValueError("should be at least 1 expert")
        if isinstance(value, float) and not 0 < value <= 1:
            raise ValueError("a share should lie between 0 and 1; write a count without a decimal point")
        return value

    @model_validator(mode="after")
    def _one_criterion(self) -> DetectConfig:
        if (self.budget is None) == (self.threshold is None):
            raise ValueError("give exactly one of budget and threshold, and null for the other")
        return self


class AlignConfig(Section):
    """Set routing consistency and expert repair."""

    order: Literal["routers_first", "experts_first"] = Field(
        "routers_first",
        description="'routers_first': routing is made consistent, experts are chosen under it and repaired; "
        "'experts_first': experts of the base model, repair and routers in turn, as in the paper.",
    )
    both_routings: Switch = Field(
        True,
        description="Repair under the base model's routing too, in every other step, so that it holds where "
        "consistent routing is undone; for routers_first.",
    )
    fixed_routing: Literal["frozen", "replay"] = Field(
        "frozen",
        description="Routing in repair: 'frozen' routers, or 'replay' of the base model's choices.",
    )
    rounds: Count = Field(3, description="Rounds of repair and of routing consistency.")
    repair_epochs: CountOrZero = Field(1, description="Epochs of expert repair in a round.")
    router_epochs: CountOrZero = Field(
        1, description="Epochs of routing consistency in a round; 0 leaves the routers alone."
    )
    expert_lr: Positive | None = Field(
        None,
        description="Learning rate of the selected experts; null for one by the model's width: 1e-2 for the "
        "built-in models, 5e-5 (the paper's) from 2,048 on; with expert_rank 3e-2 and 2e-4.",
    )
    expert_rank: Count | None = Field(
        None,
        multiple_of=8,
        description="Rank, a multiple of 8, of what is added to each matrix of a selected expert (LoRA): "
        "8 needs little memory beside the weights. null trains whole rows, as the paper does.",
    )
    attention_rank: Count | None = Field(
        8,
        description="Rank of what every projection of attention learns (LoRA) beside the experts: fewer "
        "attacks that nobody trained on come through. null leaves attention alone, as the paper does.",
    )
    router_lr: Positive | None = Field(
        None,
        description="Learning rate of the routers; null for one by the model's width: 2e-3 for the built-in "
        "models, 1e-4 from 2,048 on; with order: experts_first 1e-4 and 1e-6 (the paper's).",
    )
    lr_decay: Switch = Field(
        True, description="Let both learning rates fall to 0 in a straight line over the rounds."
    )
    weight_decay: NotNegative = Field(0.0, description="AdamW's weight decay, for whatever is being trained.")
    batch_size: Count = Field(16, description="Pairs in one optimiser step.")
    batch_tokens: Count = Field(
        2048,
        description="Tokens in one forward and backward pass, padding included: a step takes as many passes "
        "as it needs, and its gradient stays the same.",
    )
    retain_weight: NotNegative = Field(
        3.0, description="Weight of the harmless conversations in repair; 0 is the paper's form."
    )
    drift_weight: NotNegative = Field(
        3.0,
        description="Weight, in repair, of how far the scores of the whole vocabulary move on harmless "
        "conversations; 0 is the paper's form.",
    )
    context_shift: NotNegative = Field(
        1.0,
        description="Show half of what is refused in the mixture of contexts in which it is refused least: "
        "how much of what contexts add to the hidden state at the last prompt token is added in repair; "
        "0 is the paper's form.",
    )
    retain_per_pair: Count = Field(4, description="Harmless conversations beside each pair of a batch.")
    anchor_weight: NotNegative = Field(
        1.0, description="Weight of the plain requests' refusals in repair; 0 is the paper's form."
    )
    recovery_weight: NotNegative = Field(
        1.0,
        description="Weight of refusing in the middle of a harmful answer; 0 is the paper's form.",
    )
    recovery_depth: PartOfOne = Field(
        1.0,
        description="How far into a harmful answer, as a share of it, refusals are learned, early ones more "
        "often: the deeper, the more they hold where an attacker begins the answer.",
    )
    kl: Literal["forward", "reverse", "symmetric"] = Field(
        "forward", description="Divergence from the anchors' routing: forward is KL(anchor || jailbreak)."
    )
    router_retain_weight: NotNegative = Field(
        1.0,
        description="Weight of keeping the routing of plain and harmless requests; 0 is the paper's form.",
    )
    router_span: Literal["response", "prompt", "both", "last_prompt", "deciding"] = Field(
        "last_prompt", description="Tokens whose routing is made consistent; named as in detect.span."
    )
    max_grad_norm: Positive = Field(1.0, description="Gradients are scaled down to this norm.")
    early_stop_loss: Positive | None = Field(
        None, description="End a repair phase once an epoch's mean loss falls below this; null for never."
    )
    gradient_checkpointing: Switch = Field(
        False, description="Recompute activations in the backward pass: slower, less memory."
    )
    optimizer_on_cpu: Switch = Field(
        False, description="Keep AdamW's moments in the CPU's memory: slower steps, less of the GPU's."
    )
    base_bits: Literal[8, 4] | None = Field(
        None,
        description="Bits, 8 or 4, of the integers that hold the routed experts in training: half or a third "
        "of a bf16 expert's room on a GPU. The weights themselves wait in the CPU's memory. null for none.",
    )

    @model_validator(mode="after")
    def _something_to_train(self) -> AlignConfig:
        if self.repair_epochs == 0 and self.router_epochs == 0:
            raise ValueError("repair_epochs and router_epochs are both 0, so nothing would be trained")
        return self


class EvaluateConfig(Section):
    """Set how attacks, over-refusal and ability are measured."""

    goals_per_suite: Count = Field(
        100, description="Most goals in one suite (an attack family, or one kind of question)."
    )
    split: Literal["validation", "test"] = Field(
        "test", description="Split measured; tune on 'validation', report 'test'."
    )
    max_new_tokens: Count = Field(64, description="Longest answer, in tokens.")
    batch_tokens: Count = Field(
        8192, description="Tokens in one generation batch, padding included; less needs less memory."
    )
    models: Names = Field(
        (), description="Models measured, out of base, rasa and the rivals; empty for all of them."
    )


class AuditConfig(Section):
    """Set the swaps that ask whether a gain is repair or rerouting."""

    goals_per_suite: Count = Field(40, description="Most goals in one suite for each swapped model.")
    goals_for_shares: Count = Field(
        40, description="Goals behind the Shapley shares, for which every combination of components answers."
    )
    attacks_per_goal: Count = Field(
        3, description="Attack families in which each of those goals is asked, taken in turn."
    )
