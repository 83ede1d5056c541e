"""Load a model and its tokenizer, or say in one sentence why they cannot be used."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.distributed import DistributedConfig

from rasa_moe.errors import ModelError
from rasa_moe.moe.families import promised_num_experts, refuse_unsupported
from rasa_moe.moe.layers import discover

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

_TESTBED_PREFIX = "testbed/"
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def load_model(
    name_or_path: str | Path,
    *,
    dtype: str | torch.dtype = "auto",
    device: str | torch.device = "auto",
    trust_remote_code: bool = False,
    revision: str | None = None,
    shards: int = 1,
    parallel: Literal["fsdp", "ep", "tp"] = "fsdp",
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a mixture-of-experts model in eval mode together with its tokenizer (left padding).

    Args:
        name_or_path: A directory, a Hugging Face name, or "testbed/olmoe" and "testbed/qwen3" for the
            packaged models.
        dtype: "auto" (as saved), "float32", "bfloat16", "float16", or a torch dtype.
        device: "auto" (CUDA when present, else CPU) or a torch device.
        trust_remote_code: Whether code shipped with the model may run.
        revision: Branch, tag or commit of a Hugging Face repository.
        shards: Processes that hold the weights together, all of those that torchrun started; 1 loads the
            whole model here.
        parallel: How shards work together: "fsdp" gathers weights to use them, "ep" does so but sends tokens
            to the processes that own their experts, "tp" has every process compute a piece of every layer.

    Raises:
        ModelError: The model is missing, dense, of a refused family, its tokenizer has no chat template, or
            there is no such device.
    """
    path = resolve(str(name_or_path))
    # Tried before minutes of reading; shares find their own devices.
    place = usable_device(device) if shards == 1 else None
    options: dict[str, Any] = {"trust_remote_code": trust_remote_code, "revision": revision}
    shown = str(name_or_path)
    config = _read_config(path, shown=shown, options=options)
    tokenizer = load_tokenizer(path, shown=shown, options=options)
    options["dtype"] = _DTYPES.get(str(dtype), dtype)
    if shards > 1:
        _require_plan(config, shards=shards, parallel=parallel, shown=shown)
        sizes = {"fsdp": (shards, 1, 1), "ep": (shards, shards, 1), "tp": (1, 1, shards)}[parallel]
        options["distributed_config"] = DistributedConfig(
            fsdp_size=sizes[0], ep_size=sizes[1], tp_size=sizes[2]
        )
    model = _load_weights(path, shown=shown, options=options)
    if place is None:
        _settle_shares(model.eval())
    else:
        model = model.to(place).eval()
    discover(model)
    return model, tokenizer


def loading_notes(tokenizer: PreTrainedTokenizerBase) -> tuple[str, ...]:
    """Return what a reader of a run should know about how its tokenizer was set up."""
    if tokenizer.pad_token_id == tokenizer.eos_token_id:
        return ("The tokenizer has no padding token of its own; the end-of-sequence token pads.",)
    return ()


def resolve(name: str) -> str:
    """Return the directory of a packaged model, or the name unchanged."""
    if not name.startswith(_TESTBED_PREFIX):
        return name
    from rasa_moe.testbed import model_path

    return str(model_path(name.removeprefix(_TESTBED_PREFIX)))


def load_tokenizer(path: str, *, shown: str, options: dict[str, Any]) -> PreTrainedTokenizerBase:
    """Load a tokenizer with a chat template, left padding and some padding token.

    Args:
        path: What `resolve` returned.
        shown: The name to use in errors.
        options: `trust_remote_code` and `revision`.

    Raises:
        ModelError: It cannot be read, or has no chat template or no usable special token.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, padding_side="left", **options)
    except (OSError, ValueError) as error:
        raise ModelError(f"The model '{shown}' has no readable tokenizer ({_first_line(error)}).") from error
    if not tokenizer.chat_template:
        raise ModelError(
            f"The tokenizer of '{shown}' has no chat template; choose an instruction-tuned model."
        )
    if tokenizer.pad_token_id is None:
        # Masks come from lengths, so any known token can fill the padding.
        filler = tokenizer.eos_token or tokenizer.bos_token or tokenizer.unk_token
        if filler is None:
            raise ModelError(
                f"The tokenizer of '{shown}' names no padding, end, beginning or unknown token; "
                "name one of them in its tokenizer_config.json."
            )
        tokenizer.pad_token = filler
    for note in loading_notes(tokenizer):
        logger.info(note)
    return tokenizer


def _read_config(path: str, *, shown: str, options: dict[str, Any]) -> PreTrainedConfig:
    """Read the configuration of a model's text part, and refuse what has no experts that can be repaired."""
    try:
        config = AutoConfig.from_pretrained(path, **options).get_text_config()
    except (OSError, ValueError) as error:
        raise ModelError(
            f"No model could be read from '{shown}' ({_first_line(error)}); "
            "give a model directory or a Hugging Face name."
        ) from error
    refuse_unsupported(config.model_type)
    if promised_num_experts(config) is None:
        raise ModelError(
            f"The model '{shown}' is dense (type '{config.model_type}'); choose a mixture-of-experts model."
        )
    return config


def _load_weights(path: str, *, shown: str, options: dict[str, Any]) -> PreTrainedModel:
    """Load a model whose every weight comes from the checkpoint; transformers would make up missing ones."""
    try:
        model, info = AutoModelForCausalLM.from_pretrained(path, output_loading_info=True, **options)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise ModelError(
            f"The weights of '{shown}' could not be loaded ({_first_line(error)}); "
            "check its files and its config."
        ) from error
    missing = sorted(info["missing_keys"])
    if missing:
        raise ModelError(
            f"The checkpoint '{shown}' lacks {len(missing)} of the model's tensors ({missing[0]}...); "
            "get the whole checkpoint."
        )
    loaded: PreTrainedModel = model
    return loaded


def _require_plan(config: Any, *, shards: int, parallel: str, shown: str) -> None:
    """Refuse a parallelism where transformers does not say how, or experts cannot be cut evenly."""
    num_experts = promised_num_experts(config) or 0
    plans = {"ep": "base_model_ep_plan", "tp": "base_model_tp_plan"}
    style = {"ep": "ep_dispatch_experts", "tp": "moe_tp_experts"}.get(parallel)
    plan = getattr(config, plans.get(parallel, ""), None) or {}
    if style is not None and (style not in plan.values() or (parallel == "ep" and num_experts % shards)):
        raise ModelError(
            f"The experts of '{shown}' ({num_experts} a layer, type '{config.model_type}') cannot be dealt "
            f"out to {shards} processes by {parallel}; set distributed.sharding: fsdp."
        )


@torch.no_grad()
def _settle_shares(model: PreTrainedModel) -> None:
    """Call a sharded model once, so that its buffers for whole weights are ordinary tensors.

    Made within inference mode they could never take part in training. No weight wants a gradient: what is
    trained stands outside the model.
    """
    model.requires_grad_(False)
    model(input_ids=torch.zeros(1, 2, dtype=torch.int64, device=model.device), use_cache=False)


def usable_device(device: str | torch.device) -> torch.device:
    """Return a device of this machine; "auto" is CUDA when present, else the CPU.

    Raises:
        ModelError: There is no such device.
    """
    automatic = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        place = torch.device(automatic if device == "auto" else device)
        torch.empty(1, device=place)
    except (RuntimeError, AssertionError) as error:  # torch says "not there" in either way
        raise ModelError(
            f"The device '{device}' cannot be used ({_first_line(error)}); give device: auto, or one of this "
            "machine."
        ) from error
    return place


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
