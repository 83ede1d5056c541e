"""A tuned model that differs from its base in how experts are selected, and in nothing else."""

from __future__ import annotations

import copy

import pytest
import torch

from architectures.builders import build
from rasa_moe.audit.checkpoints import changed_pieces
from rasa_moe.audit.components import ROUTERS, difference
from rasa_moe.audit.stage import _answered
from rasa_moe.data.rows import PromptRow
from rasa_moe.engines import generate
from rasa_moe.moe import discover, swapped
from unit.tiny import tiny_pairs, tiny_tokenizer

TOKENIZER = tiny_tokenizer()
ROWS = [
    PromptRow(
        id=pair.goal, goal=pair.goal, kind="harmful", family=pair.family, split="test",
        messages=pair.jailbreak,
    )
    for pair in tiny_pairs()
]  # fmt: skip
OPTIONS = {"max_new_tokens": 12}


@pytest.mark.parametrize(
    ("model_type", "bias"),
    [
        ("deepseek_v3", "mlp.gate.e_score_correction_bias"),  # a buffer of the router
        ("minimax_m2", "mlp.e_score_correction_bias"),  # a buffer beside it
        ("afmoe", "mlp.expert_bias"),  # a parameter beside it
    ],
)
def test_a_selection_bias_is_put_back_with_the_routers(model_type: str, bias: str) -> None:
    base = build(model_type)
    tuned = copy.deepcopy(base)
    moe = discover(base)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, tensor in (*tuned.named_buffers(), *tuned.named_parameters()):
            if name.endswith(bias):
                tensor.add_(torch.randn(tensor.shape, generator=generator))
    changed = changed_pieces(moe, discover(tuned))
    assert len(changed) == moe.num_layers
    changes = difference(moe, changed, experts=moe.expert_ids()[:1])
    assert changes.components == (ROUTERS,)

    prompts = [row.messages for row in ROWS]
    as_base = generate(base, TOKENIZER, prompts, **OPTIONS)
    with swapped(base, changed):
        assert generate(base, TOKENIZER, prompts, **OPTIONS) != as_base, "the bias must matter"
    answered = _answered(base, TOKENIZER, moe, changes, rows=ROWS, name="tuned", options=OPTIONS)
    assert answered["base routers"] == as_base
