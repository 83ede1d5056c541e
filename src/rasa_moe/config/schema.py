"""Every setting of a run, with its default, its limits and the sentence that explains it.

The descriptions become the comments of the YAML files; the defaults are those of the small built-in model.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from rasa_moe.config.fields import (
    Count,
    CountOrZero,
    Names,
    NotNegative,
    Positive,
    Section,
    Switch,
    Text,
)
from rasa_moe.config.rivals import FullConfig, RivalsConfig
from rasa_moe.config.stages import (
    AlignConfig,
    AuditConfig,
    CollectConfig,
    DataConfig,
    DetectConfig,
    EvaluateConfig,
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
    compare: Names = Field(
        ("full",),
        description="Rival methods trained on the same pairs, such as full, lora, experts_only or steering; "
        "empty for none. full trains every weight and needs dtype: float32.",
    )
    data: DataConfig = Field(DataConfig(), description="Prompts and judge.")
    collect: CollectConfig = Field(
        CollectConfig(), description="Pairs: one goal, a jailbreak that works, the plain request refused."
    )
    detect: DetectConfig = Field(
        DetectConfig(), description="Safety-critical experts, by activation discrepancy."
    )
    align: AlignConfig = Field(
        AlignConfig(), description="Routing consistency, and expert repair under fixed routing."
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

    @model_validator(mode="after")
    def _attention_learns_where_nothing_else_does(self) -> Config:
        if "attention_only" in self.compare and self.align.attention_rank is None:
            raise ValueError(
                "compare names attention_only, which trains what align.attention_rank adds, and that is "
                "null; set a rank, or leave the method out"
            )
        return self
