"""Settings of the methods that a run compares with, each used when compare names it."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from rasa_moe.config.fields import Count, Positive, Section


class TrainedRival(Section):
    """Set what every method that trains weights has."""

    epochs: Count = Field(3, description="Epochs over the same pairs and harmless conversations.")


class FullConfig(TrainedRival):
    """Set full fine-tuning, the rival that the audit is about."""

    lr: Positive | None = Field(None, description="Learning rate of every weight; null for one by the width.")


class LoraSettings(TrainedRival):
    """Set low-rank adapters on attention and routed experts, merged when training ends."""

    lr: Positive | None = Field(None, description="Learning rate of the adapters; null for one by the width.")
    rank: Count = Field(8, description="Rank of every adapter.")
    alpha: Positive = Field(16.0, description="Scale of the adapters: alpha / rank.")


class ExpertsOnlySettings(TrainedRival):
    """Set the training of all experts and nothing else."""

    lr: Positive | None = Field(None, description="Learning rate of every expert; null for one by the width.")


class RoutersOnlySettings(TrainedRival):
    """Set the training of all routers and nothing else, with the supervised loss."""

    lr: Positive | None = Field(None, description="Learning rate of every router; null for one by the width.")


class AffinitySettings(TrainedRival):
    """Set the training of the experts that jailbreaks use most, as many as detect.budget selects."""

    lr: Positive | None = Field(
        None, description="Learning rate of those experts; null for one by the width."
    )


class SteeringSettings(Section):
    """Set router steering at inference; no weight changes."""

    share: Annotated[float, Field(gt=0, le=0.5, strict=True)] = Field(
        0.125, description="Share of all experts to suppress, and again to promote."
    )
    strength: Positive = Field(2.0, description="What is added to or taken from a router's logits.")


class RouterKlSettings(TrainedRival):
    """Set full fine-tuning that holds the routing of the last prompt token near the refused request's."""

    lr: Positive | None = Field(None, description="Learning rate of every weight; null for one by the width.")
    kl_weight: Positive = Field(1.0, description="Weight of the routing divergence beside the other loss.")


class ReroutingSettings(TrainedRival):
    """Set representation rerouting: hidden states of harmful answers leave those of the base model."""

    lr: Positive | None = Field(None, description="Learning rate of every weight; null for one by the width.")
    weight: Positive = Field(
        10.0, description="Weight of both losses; it moves from rerouting to retaining in training."
    )


class RivalsConfig(Section):
    """Set the rival methods, each used when compare names it."""

    lora: LoraSettings = Field(LoraSettings(), description="lora: low-rank adapters (needs peft).")
    experts_only: ExpertsOnlySettings = Field(ExpertsOnlySettings(), description="experts_only: all experts.")
    routers_only: RoutersOnlySettings = Field(RoutersOnlySettings(), description="routers_only: all routers.")
    affinity_experts: AffinitySettings = Field(
        AffinitySettings(), description="affinity_experts: the experts that jailbreaks use most."
    )
    steering: SteeringSettings = Field(
        SteeringSettings(), description="steering: promote and suppress experts while answering."
    )
    router_kl: RouterKlSettings = Field(
        RouterKlSettings(), description="router_kl: full fine-tuning, routing of the last prompt token held."
    )
    rerouting: ReroutingSettings = Field(
        ReroutingSettings(), description="rerouting: hidden states of harmful answers pushed away."
    )
