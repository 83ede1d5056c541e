"""Batches keep pairs together, learn answers only, and are the same for the same seed."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
import torch

from rasa_moe.align.batches import TrainingBatch, epoch_order, make_batches
from rasa_moe.data.chats import encode_chat
from rasa_moe.data.rows import Pair
from unit.tiny import tiny_pairs, tiny_retain, tiny_tokenizer

TOKENIZER = tiny_tokenizer()


def batches_of(
    *, num_pairs: int = 6, num_retain: int = 4, size: int = 4, seed: int = 0, **options: Any
) -> list[TrainingBatch]:
    return make_batches(
        TOKENIZER,
        pairs=tiny_pairs(num_pairs),
        retain=tiny_retain(num_retain),
        batch_size=size,
        seed=seed,
        **options,
    )


def chats_of(batch: TrainingBatch, name: str) -> list[tuple[str, str]]:
    """Return (prompt, learned text) of a part's rows, read back from tokens and labels."""
    part = batch.part(name)
    found = []
    for row in range(len(part.input_ids)):
        ids, labels = part.input_ids[row], part.labels[row]
        learned = labels != -100
        prompt = part.attention_mask[row].bool() & ~learned
        assert torch.equal(ids[learned], labels[learned])
        assert not bool(learned[part.attention_mask[row] == 0].any()), "padding would be learned"
        found.append((TOKENIZER.decode(ids[prompt]), TOKENIZER.decode(ids[learned])))
    return found


def turn(text: str) -> str:
    return f"<|user|> {text} <|end|> <|assistant|>"


def test_every_pair_occurs_once_with_its_own_refusal_on_both_sides() -> None:
    expected = {
        (
            turn(pair.jailbreak[0]["content"]),
            turn(pair.anchor[0]["content"]),
            f"{pair.anchor_answer} <|end|>",
        )
        for pair in tiny_pairs()
    }
    found = []
    for batch in batches_of():
        for (jailbreak, first), (anchor, second) in zip(
            chats_of(batch, "jailbreak"), chats_of(batch, "anchor"), strict=True
        ):
            assert first == second
            found.append((jailbreak, anchor, first))
    assert sorted(found) == sorted(expected)


def test_the_harmful_answer_is_nowhere_in_a_batch() -> None:
    boil = TOKENIZER.convert_tokens_to_ids("boil")
    assert all(pair.jailbreak_answer.startswith("boil") for pair in tiny_pairs())
    assert not any(bool((batch.chats.input_ids == boil).any()) for batch in batches_of())


def test_batches_have_the_asked_size_and_the_last_one_the_rest() -> None:
    assert [len(batch.parts["jailbreak"]) for batch in batches_of(size=4)] == [4, 2]
    assert [len(batch.parts["retain"]) for batch in batches_of(size=4)] == [4, 2]
    assert [len(batch.parts["anchor"]) for batch in batches_of(size=100)] == [6]


def test_fewer_harmless_conversations_than_pairs_are_repeated_evenly() -> None:
    seen = Counter(chat for batch in batches_of(num_retain=4) for chat in chats_of(batch, "retain"))
    assert sorted(seen.values()) == [1, 1, 2, 2]


def test_every_kind_of_harmless_conversation_comes_as_often_however_few_it_has() -> None:
    few, many = tiny_retain(2), tiny_retain(5)
    mixed = [replace(row, kind="ability") for row in few] + [
        replace(row, kind="harmless") for row in many[2:]
    ]
    batches = make_batches(
        TOKENIZER, pairs=tiny_pairs(6), retain=mixed, batch_size=2, seed=0, retain_per_pair=2
    )
    abilities = {TOKENIZER.decode(encode_chat(TOKENIZER, row.messages, row.answer).input_ids) for row in few}
    for batch in batches:
        seen = [f"{prompt} {learned}" in abilities for prompt, learned in chats_of(batch, "retain")]
        assert sorted(seen) == [False, False, True, True]


def test_more_harmless_conversations_than_pairs_are_drawn_without_repetition() -> None:
    seen = Counter(
        chat for batch in batches_of(num_pairs=3, num_retain=5) for chat in chats_of(batch, "retain")
    )
    assert sorted(seen.values()) == [1, 1, 1]


def test_several_harmless_conversations_may_go_beside_each_pair() -> None:
    batches = batches_of(num_retain=5, size=4, retain_per_pair=2)
    assert [len(batch.parts["retain"]) for batch in batches] == [8, 4]
    seen = Counter(chat for batch in batches for chat in chats_of(batch, "retain"))
    assert sorted(seen.values()) == [2, 2, 2, 3, 3]


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("depth", [0.1, 0.5, 1.0])
def test_recovery_refuses_in_the_middle_of_a_harmful_answer(seed: int, depth: float) -> None:
    by_request = {
        turn(messages[0]["content"]): pair
        for pair in tiny_pairs()
        for messages in (pair.jailbreak, pair.anchor)
    }
    goals = []
    for batch in batches_of(seed=seed, recovery_depth=depth):
        assert len(batch.parts["recovery"]) == len(batch.parts["jailbreak"])
        for prompt, learned in chats_of(batch, "recovery"):
            request, _, begun = prompt.partition("<|assistant|> ")
            pair = by_request[f"{request}<|assistant|>"]
            assert learned == f"{pair.anchor_answer} <|end|>"
            harmful = pair.jailbreak_answer.split()
            begun_words = begun.split()
            # A word is a token here, and the end of the turn is one more.
            assert 1 <= len(begun_words) <= max(1, depth * (len(harmful) + 1))
            assert begun_words == harmful[: len(begun_words)], "the end of the turn is never begun"
            goals.append(pair.goal)
    assert sorted(goals) == sorted(pair.goal for pair in tiny_pairs())


def test_recovery_also_begins_as_the_other_answers_do() -> None:
    own = tiny_pairs(3)
    others = [
        replace(pair, other_answers=(f"cut {pair.jailbreak_answer}", f"melt {pair.jailbreak_answer}"))
        for pair in own
    ]

    def openings(pairs: list[Pair]) -> Counter[str]:
        return Counter(
            prompt.partition("<|assistant|> ")[2].split()[0]
            for seed in range(40)
            for batch in make_batches(
                TOKENIZER, pairs=pairs, retain=[], batch_size=3, seed=seed, recovery_depth=1.0
            )
            for prompt, _ in chats_of(batch, "recovery")
        )

    assert set(openings(own)) == {"boil"}
    found = openings(others)
    assert set(found) == {"boil", "cut", "melt"} and min(found.values()) > 20  # of 120, each a third


def test_recovery_reaches_as_far_as_it_is_told_to_and_early_more_often() -> None:
    def lengths(depth: float) -> list[int]:
        return [
            len(prompt.partition("<|assistant|> ")[2].split())
            for seed in range(40)
            for batch in batches_of(seed=seed, recovery_depth=depth)
            for prompt, _ in chats_of(batch, "recovery")
        ]

    whole = max(len(pair.jailbreak_answer.split()) for pair in tiny_pairs(6))
    often = Counter(lengths(1.0))
    assert set(often) == set(range(1, whole + 1)) and often[1] > 2 * often[whole]
    assert [max(lengths(depth)) for depth in (0.01, 0.5, 1)] == [1, whole // 2, whole]


def test_without_harmless_conversations_there_is_no_such_part() -> None:
    for batch in batches_of(num_retain=0):
        assert set(batch.parts) == {"jailbreak", "anchor"}
        assert len(batch.chats.input_ids) == sum(len(rows) for rows in batch.parts.values())


def test_parts_share_out_the_rows_and_keep_the_padding_and_spans() -> None:
    for batch in batches_of():
        rows = torch.cat(list(batch.parts.values()))
        assert sorted(rows.tolist()) == list(range(len(batch.chats.input_ids)))
        for name, chosen in batch.parts.items():
            part = batch.part(name)
            assert part.input_ids.shape[1] == batch.chats.input_ids.shape[1]
            for span, mask in batch.chats.spans.items():
                assert torch.equal(part.spans[span], mask[chosen])
        # Padded on the right: a real token never follows padding.
        assert bool((batch.chats.attention_mask.diff(dim=1) <= 0).all())


def test_parts_can_be_taken_together_one_after_another() -> None:
    for batch in batches_of():
        both = batch.part("retain", "jailbreak")
        apart = [batch.part(name) for name in ("retain", "jailbreak")]
        assert torch.equal(both.input_ids, torch.cat([part.input_ids for part in apart]))
        assert torch.equal(both.labels, torch.cat([part.labels for part in apart]))
        assert torch.equal(both.spans["response"], torch.cat([part.spans["response"] for part in apart]))


def test_the_seed_decides_the_batches() -> None:
    first, again, other = batches_of(seed=3), batches_of(seed=3), batches_of(seed=4)
    assert all(
        torch.equal(a.chats.input_ids, b.chats.input_ids) and torch.equal(a.chats.labels, b.chats.labels)
        for a, b in zip(first, again, strict=True)
    )
    assert [chats_of(batch, "jailbreak") for batch in first] != [
        chats_of(batch, "jailbreak") for batch in other
    ]


def test_epochs_differ_in_order_only() -> None:
    orders = [epoch_order(20, seed=1, epoch=epoch) for epoch in range(4)]
    assert all(sorted(order) == list(range(20)) for order in orders)
    assert len({tuple(order) for order in orders}) == 4
    assert orders == [epoch_order(20, seed=1, epoch=epoch) for epoch in range(4)]
    assert epoch_order(20, seed=2, epoch=0) != orders[0]
