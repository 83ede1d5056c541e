"""Every setting of a run, with its default, its limits and the sentence that explains it.

The descriptions become the comments of the YAML files; the defaults are those of the small built-in model.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator


def _split_names(value: object) -> object:
    """Accept `a, b` and an empty value where a list of names is wanted, as a command line writes them."""
    if value is None:
        return ()
    if isinstance(value, str):
        return tuple(name.strip() for name in value.split(",") if name.strip())
    return tuple(value) if isinstance(value, list) else value


Names = Annotated[tuple[str, ...], BeforeValidator(_split_names)]
# Strict: `true` is no number, and a commit such as 12e4567 that YAML reads as a number is no text.
Text = Annotated[str, Field(min_length=1, strict=True)]
Switch = Annotated[bool, Field(strict=True)]
Positive = Annotated[float, Field(gt=0, strict=True)]
NotNegative = Annotated[float, Field(ge=0, strict=True)]
Count = Annotated[int, Field(ge=1, strict=True)]
Finite = Annotated[float, Field(strict=True)]
Number = Annotated[int, Field(strict=True)]
CountOrZero = Annotated[int, Field(ge=0, strict=True)]


class Section(BaseModel):
    """Hold settings that cannot change once read; an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


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
    retain_rows: int = Field(
        1024,
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
        None, description="Select every expert whose discrepancy exceeds this; needs budget: null."
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
    """Set the alternation of expert repair and routing consistency."""

    fixed_routing: Literal["frozen", "replay"] = Field(
        "frozen",
        description="Routing in repair: 'frozen' routers, or 'replay' of the base model's choices.",
    )
    rounds: Count = Field(3, description="Rounds of repair followed by routing consistency.")
    repair_epochs: CountOrZero = Field(1, description="Epochs of expert repair in a round.")
    router_epochs: CountOrZero = Field(
        1, description="Epochs of routing consistency in a round; 0 leaves the routers alone."
    )
    expert_lr: Positive = Field(
        2e-3, description="Learning rate of the selected experts; the paper's models use 5e-5."
    )
    router_lr: Positive = Field(
        1e-4, description="Learning rate of the routers; the paper's models use 1e-6."
    )
    lr_decay: Switch = Field(
        True, description="Let both learning rates fall to 0 in a straight line over the rounds."
    )
    weight_decay: NotNegative = Field(0.0, description="AdamW's weight decay, for whatever is being trained.")
    batch_size: Count = Field(16, description="Pairs in one optimiser step.")
    retain_weight: NotNegative = Field(
        3.0, description="Weight of the harmless conversations in repair; 0 is the paper's form."
    )
    retain_per_pair: Count = Field(2, description="Harmless conversations beside each pair of a batch.")
    anchor_weight: NotNegative = Field(
        1.0, description="Weight of the plain requests' refusals in repair; 0 is the paper's form."
    )
    recovery_weight: NotNegative = Field(
        1.0,
        description="Weight of refusing in the middle of a harmful answer; 0 is the paper's form.",
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

    @model_validator(mode="after")
    def _something_to_train(self) -> AlignConfig:
        if self.repair_epochs == 0 and self.router_epochs == 0:
            raise ValueError("repair_epochs and router_epochs are both 0, so nothing would be trained")
        return self


class FullConfig(Section):
    """Set full fine-tuning, the rival that the audit is about."""

    epochs: Count = Field(3, description="Epochs over the same pairs and harmless conversations.")
    lr: Positive = Field(1e-4, description="Learning rate of every weight.")


class LoraSettings(Section):
    """Set low-rank adapters on attention and routed experts, merged when training ends."""

    epochs: Count = Field(3, description="Epochs over the same pairs and harmless conversations.")
    lr: Positive = Field(1e-3, description="Learning rate of the adapters.")
    rank: Count = Field(8, description="Rank of every adapter.")
    alpha: Positive = Field(16.0, description="Scale of the adapters: alpha / rank.")


class ExpertsOnlySettings(Section):
    """Set the training of all experts and nothing else."""

    epochs: Count = Field(3, description="Epochs over the same pairs and harmless conversations.")
    lr: Positive = Field(2e-4, description="Learning rate of every expert.")


class RoutersOnlySettings(Section):
    """Set the training of all routers and nothing else, with the supervised loss."""

    epochs: Count = Field(3, description="Epochs over the same pairs and harmless conversations.")
    lr: Positive = Field(1e-3, description="Learning rate of every router.")


class AffinitySettings(Section):
    """Set the training of the experts that jailbreaks use most, as many as detect.budget selects."""

    epochs: Count = Field(3, description="Epochs over the same pairs and harmless conversations.")
    lr: Positive = Field(5e-4, description="Learning rate of those experts.")


class SteeringSettings(Section):
    """Set router steering at inference; no weight changes."""

    share: Annotated[float, Field(gt=0, le=0.5, strict=True)] = Field(
        0.125, description="Share of all experts to suppress, and again to promote."
    )
    strength: Positive = Field(2.0, description="What is added to or taken from a router's logits.")


class RouterKlSettings(Section):
    """Set full fine-tuning that holds the routing of the last prompt token near the refused request's."""

    epochs: Count = Field(3, description="Epochs over the same pairs and harmless conversations.")
    lr: Positive = Field(1e-4, description="Learning rate of every weight.")
    kl_weight: Positive = Field(1.0, description="Weight of the routing divergence beside the other loss.")


class ReroutingSettings(Section):
    """Set representation rerouting: hidden states of harmful answers leave those of the base model."""

    epochs: Count = Field(3, description="Epochs over the same pairs and harmless conversations.")
    lr: Positive = Field(1e-4, description="Learning rate of every weight.")
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


class EndpointConfig(Section):
    """Name a model on a server that speaks OpenAI's chat protocol (vLLM, SGLang, transformers serve, ...)."""

    url: str = Field("", description="Base address, such as http://localhost:8000/v1; empty for no server.")
    model: str = Field("", description="Name of the model on that server.")
    api_key_env: str = Field(
        "", description="Environment variable that holds the access key; empty if the server needs none."
    )
    max_tokens: Count = Field(512, description="Longest reply, in tokens, where a stage does not say.")
    temperature: NotNegative = Field(0.0, description="0 repeats the likeliest reply.")
    concurrency: Count = Field(8, description="Requests under way at the same time.")
    requests_per_minute: Positive | None = Field(None, description="Rate limit; null for none.")
    timeout_seconds: Positive = Field(120.0, description="Time allowed for one reply.")
    retries: CountOrZero = Field(5, description="Further tries after a failure, with growing pauses.")


class EngineConfig(Section):
    """Say which servers are asked; without a url the work stays in this process."""

    generation: EndpointConfig = Field(
        EndpointConfig(), description="Serves the base model; collect asks it instead of this process."
    )
    judge: EndpointConfig = Field(
        EndpointConfig(), description="Judges answers, when data.judge is llm-strongreject or llm-harmbench."
    )


class DistributedSettings(Section):
    """Say how processes that torchrun starts share the work; no number of a run depends on it."""

    sharding: Literal["none", "fsdp", "ep", "tp"] = Field(
        "none",
        description="'none': the whole model in every process; 'fsdp': its weights, and the trained experts, "
        "in shares; 'ep': so too, and tokens go to where their experts are; 'tp': a piece of every layer, "
        "all on one batch. All but 'none' need device: auto and no rivals in compare.",
    )


class Config(Section):
    """Everything that decides the outcome of a run."""

    model: Text = Field(
        "testbed/olmoe",
        description="A Hugging Face name, a directory, or a built-in model: testbed/olmoe, testbed/qwen3.",
    )
    revision: Text | None = Field(
        None, description="Branch, tag or commit of the model on the hub; null for its default."
    )
    dtype: Literal["auto", "float32", "bfloat16"] = Field(
        "auto",
        description="Type of the weights; 'auto' is float32 on a CPU, elsewhere the type they are saved in.",
    )
    device: Text = Field("auto", description="'auto' (CUDA where there is one), 'cpu', 'cuda', 'cuda:1', ...")
    trust_remote_code: Switch = Field(
        False, description="Run Python code that comes with the model; only for models you trust."
    )
    seed: CountOrZero = Field(0, lt=2**32, description="Seed of everything random.")
    threads: Count | None = Field(
        None, description="CPU threads; null lets PyTorch choose. Another number may change last digits."
    )
    thinking: Switch = Field(
        False, description="Let models think that can; thoughts are neither judged nor trained on."
    )
    compare: Names = Field(("full",), description="Rival methods trained on the same pairs; empty for none.")
    data: DataConfig = Field(DataConfig(), description="Prompts and judge.")
    collect: CollectConfig = Field(
        CollectConfig(), description="Pairs: one goal, a jailbreak that works, the plain request refused."
    )
    detect: DetectConfig = Field(
        DetectConfig(), description="Safety-critical experts, by activation discrepancy."
    )
    align: AlignConfig = Field(
        AlignConfig(), description="Expert repair under fixed routing, then routing consistency."
    )
    full: FullConfig = Field(FullConfig(), description="Full fine-tuning, when compare names it.")
    rivals: RivalsConfig = Field(RivalsConfig(), description="Other rival methods, when compare names them.")
    evaluate: EvaluateConfig = Field(
        EvaluateConfig(), description="Attack success, over-refusal and ability."
    )
    audit: AuditConfig = Field(AuditConfig(), description="Counterfactual swaps of routers and experts.")
    engine: EngineConfig = Field(EngineConfig(), description="Servers that answer, attack or judge.")
    distributed: DistributedSettings = Field(
        DistributedSettings(), description="Several processes, started by torchrun."
    )
