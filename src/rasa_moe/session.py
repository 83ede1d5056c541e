"""What the stages of one run share: configuration, model, rows, judge; each loaded when first needed."""

from __future__ import annotations

import difflib
import random
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from rasa_moe.errors import ConfigError
from rasa_moe.progress import Progress, no_progress

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from rasa_moe.config import Config
    from rasa_moe.data.source import Source
    from rasa_moe.engines import HttpEngine
    from rasa_moe.judges import Judge
    from rasa_moe.moe import ExpertPatch
    from rasa_moe.moe.layers import MoeMap
    from rasa_moe.rundir import RunDirectory

BASE, RASA = "base", "rasa"
_TESTBED = "testbed"
_LOADING = "load the model"
# Folder of the run directory with what servers have answered.
_ANSWERED = "engine"


class Session:
    """Hold what the stages of one run share.

    Attributes:
        directory: The run directory.
        progress: Called after every unit of a long step.
    """

    def __init__(self, directory: RunDirectory, *, progress: Progress = no_progress) -> None:
        self.directory = directory
        self.progress = progress
        self._loaded: tuple[PreTrainedModel, PreTrainedTokenizerBase] | None = None

    @property
    def config(self) -> Config:
        """The configuration of the run."""
        return self.directory.config

    @property
    def path(self) -> Path:
        """The folder with the files of finished stages."""
        return self.directory.path

    @property
    def model(self) -> PreTrainedModel:
        """The base model, in eval mode."""
        return self._load()[0]

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer of the base model."""
        return self._load()[1]

    @property
    def moe(self) -> MoeMap:
        """The map of the base model's routed experts."""
        from rasa_moe.moe.layers import discover

        return discover(self.model)

    @property
    def routing(self) -> ExpertPatch | None:
        """The consistent routers of the stage `route`; None where the run leaves them for later."""
        from rasa_moe.moe import ExpertPatch

        folder = self.path / "routing"
        return ExpertPatch.load(folder) if folder.is_dir() else None

    @cached_property
    def source(self) -> Source:
        """The prompts of the run, and which attack families are trained on.

        Raises:
            DataError: The rows cannot be read, a goal is in two splits, or a family is unknown.
        """
        from rasa_moe.attacks.source import run_source

        return run_source(self.config)

    @cached_property
    def judge(self) -> Judge:
        """The judge of the answers.

        Raises:
            ConfigError: No judge has that name.
        """
        from rasa_moe.judges import get_judge

        name = self.config.data.judge
        server = self.engine("judge")
        if server is not None and name.startswith("llm-") and ":" not in name:
            from rasa_moe.judges.llm import LlmJudge
            from rasa_moe.judges.rubrics import RUBRICS

            _check_names("data.judge", (name.removeprefix("llm-"),), known=tuple(RUBRICS))
            rubric = RUBRICS[name.removeprefix("llm-")]
            return LlmJudge(server, rubric, concurrency=server.config.concurrency)
        if name.startswith("llm-"):
            _require_one_process("data.judge")
        automatic = "exact" if self.config.data.source == _TESTBED else "rules"
        return get_judge(
            automatic if name == "auto" else name, answered=self.path / _ANSWERED / "judge.jsonl"
        )

    def engine(self, role: Literal["generation", "judge"]) -> HttpEngine | None:
        """Return the server that is configured for a role, None if the work stays in this process.

        Raises:
            ConfigError: It has no model name, or the access key is not in the environment.
            ModelError: The base model, served for its answers, has no usable tokenizer here.
        """
        config = getattr(self.config.engine, role)
        if not config.url:
            return None
        from rasa_moe.engines.http import HttpEngine

        _require_one_process(f"engine.{role}")
        answered = self.path / _ANSWERED / f"{role}.jsonl"
        # A judge is another model, whose template is not known here.
        thinking = self._served_thinking() if role == "generation" else None
        return HttpEngine(config, answered=answered, thinking=thinking)

    def _served_thinking(self) -> bool | None:
        """Return how a server should switch the base model's thinking; None where it has no switch."""
        from rasa_moe.data.templates import describe_template
        from rasa_moe.moe.loading import load_tokenizer, resolve

        config = self.config
        options = {"trust_remote_code": config.trust_remote_code, "revision": config.revision}
        tokenizer = load_tokenizer(resolve(config.model), shown=config.model, options=options)
        # What training could not use is found here, before a server is paid.
        return config.thinking if describe_template(tokenizer).thinking == "switchable" else None

    @property
    def evaluated(self) -> tuple[str, ...]:
        """The models that are measured, base first."""
        known = (BASE, RASA, *self.config.compare)
        wanted = self.config.evaluate.models or known
        return tuple(name for name in known if name == BASE or name in wanted)

    def check(self) -> None:
        """Find what a user can get wrong before hours of work depend on it: names, and the rows.

        Raises:
            ConfigError: No judge, rival method or model has that name.
            DataError: The rows cannot be used.
        """
        from rasa_moe.align.rivals import RIVALS

        _check_names("compare", self.config.compare, known=tuple(RIVALS))
        for name in self.config.compare:
            RIVALS[name].require_extra()
        _check_names("evaluate.models", self.config.evaluate.models, known=(BASE, RASA, *self.config.compare))
        if self.shards > 1 and (self.config.compare or self.config.device != "auto"):
            raise ConfigError(
                f"distributed.sharding: {self.config.distributed.sharding} trains no rivals and chooses the "
                "devices itself; set compare: [] and device: auto, or distributed.sharding: none."
            )
        _ = self.judge, self.source

    def check_repair(self) -> None:
        """Find what repair cannot do, before the stages that come before it take their time.

        Raises:
            ConfigError: Attention is to learn, and tensor parallelism cuts it.
        """
        is_cut = self.shards > 1 and self.config.distributed.sharding == "tp"
        if is_cut and self.config.align.attention_rank is not None:
            raise ConfigError(
                "distributed.sharding: tp cuts the projections of attention, which then cannot learn; set "
                "align.attention_rank: null, or another sharding."
            )

    @property
    def shards(self) -> int:
        """Number of processes that hold the model together; 1 where this one holds all of it."""
        from rasa_moe.distributed import current

        return 1 if self.config.distributed.sharding == "none" else current().size

    def prepare(self) -> int:
        """Set seeds and threads, the same before every stage: a resumed run draws what a whole run draws.

        Returns:
            The number of CPU threads in use.
        """
        import numpy
        import torch

        if self.config.threads is not None:
            torch.set_num_threads(self.config.threads)
        random.seed(self.config.seed)
        numpy.random.seed(self.config.seed)
        torch.manual_seed(self.config.seed)
        return torch.get_num_threads()

    def _load(self) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        if self._loaded is None:
            from rasa_moe.align.rivals import RIVALS
            from rasa_moe.align.rivals.base import require_float32
            from rasa_moe.data.thinking import set_thinking
            from rasa_moe.moe.loading import load_model

            config = self.config
            self.progress(_LOADING, 0, 1)
            model, tokenizer = load_model(
                config.model,
                dtype=working_dtype(config),
                device=config.device,
                trust_remote_code=config.trust_remote_code,
                revision=config.revision,
                shards=self.shards,
                parallel="fsdp" if config.distributed.sharding == "none" else config.distributed.sharding,
            )
            set_thinking(tokenizer, enabled=config.thinking)
            for name in config.compare:  # now, not when hours of work are done
                if RIVALS[name].trains_in_place:
                    require_float32(model, method=name)
            self._loaded = model, tokenizer
            self.progress(_LOADING, 1, 1)
        return self._loaded


def working_dtype(config: Config) -> str:
    """Return the type weights are held in: "auto" is float32 on a CPU, and elsewhere "auto", as saved.

    On a CPU bfloat16 is several times slower, and routing then depends on how texts are batched. The built-in
    models are so small that "auto" is float32 for them everywhere, as the methods that train in place want.
    """
    if config.dtype == "auto" and config.model.startswith(f"{_TESTBED}/"):
        return "float32"
    return cpu_dtype(config.dtype, config.device)


def cpu_dtype(dtype: str, device: str) -> str:
    """Return float32 for "auto" on a CPU, and any other type as it is."""
    import torch

    on_cpu = device == "cpu" or (device == "auto" and not torch.cuda.is_available())
    return "float32" if dtype == "auto" and on_cpu else dtype


def _require_one_process(setting: str) -> None:
    """Refuse a server under torchrun: every process would ask it, and pay."""
    from rasa_moe.distributed import current

    if current().size > 1:
        raise ConfigError(
            f"{setting} names a server, which one process asks; give this stage's command without torchrun, "
            "then go on with torchrun."
        )


def _check_names(key: str, names: Sequence[str], *, known: Sequence[str]) -> None:
    """Refuse a name in a list of the configuration that stands for nothing."""
    for name in names:
        if name not in known:
            nearest = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean '{nearest[0]}'?" if nearest else f"choose among {', '.join(known)}."
            raise ConfigError(f"{key} names '{name}', which does not exist; {hint}")
