"""Public sets by name: where they are on the hub, under which licence, and which columns hold what.

Nothing of them is shipped. Identifiers and licences are those of the sets' own pages when this was written;
the pages decide, and some sets ask to be accepted there first.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from rasa_moe.data.rows import Kind


@dataclass(frozen=True, kw_only=True)
class PublicSet:
    """Hold what is known of one public set.

    Attributes:
        source: Name for `read_table`, with configuration and split.
        licence: As its page states it.
        columns: Role -> column, as in `data.columns`.
        kind: What its requests are.
        kinds: Values of the column of role `kind` -> kind, where rows differ.
        note: What a user should know.
    """

    source: str
    licence: str
    columns: Mapping[str, str]
    kind: Kind
    kinds: Mapping[str, Kind] = field(default_factory=dict)
    note: str = ""


PUBLIC_SETS: Mapping[str, PublicSet] = MappingProxyType(
    {
        "advbench": PublicSet(
            source="hf:walledai/AdvBench#train",
            licence="MIT",
            columns={"goal": "prompt"},
            kind="harmful",
            note="520 plain harmful goals, many of them near-duplicates",
        ),
        "harmbench": PublicSet(
            source="hf:walledai/HarmBench:standard#train",
            licence="MIT",
            columns={"goal": "prompt"},
            kind="harmful",
            note="standard behaviours; the contextual ones need their context",
        ),
        "jailbreakbench": PublicSet(
            source="hf:JailbreakBench/JBB-Behaviors:behaviors#harmful",
            licence="MIT",
            columns={"goal": "Goal"},
            kind="harmful",
            note="100 behaviours; the split 'benign' holds 100 harmless ones beside them",
        ),
        "jailbreakbench-benign": PublicSet(
            source="hf:JailbreakBench/JBB-Behaviors:behaviors#benign",
            licence="MIT",
            columns={"goal": "Goal"},
            kind="question",
        ),
        "strongreject": PublicSet(
            source="hf:walledai/StrongREJECT#train",
            licence="MIT",
            columns={"goal": "prompt"},
            kind="harmful",
            note="313 plain harmful goals",
        ),
        "xstest": PublicSet(
            source="hf:walledai/XSTest#test",
            licence="CC BY 4.0",
            columns={"goal": "prompt", "kind": "label"},
            kind="question",
            kinds={"safe": "question", "unsafe": "harmful"},
            note="250 harmless questions that look harmful, 200 harmful ones",
        ),
        "or-bench": PublicSet(
            source="hf:bench-llm/or-bench:or-bench-hard-1k#train",
            licence="CC BY 4.0",
            columns={"goal": "prompt"},
            kind="question",
            note="1,319 hard harmless prompts",
        ),
        "wildjailbreak": PublicSet(
            source="hf:allenai/wildjailbreak:train#train",
            licence="ODC-BY, with conditions of use to accept",
            columns={"goal": "vanilla", "prompt": "adversarial", "kind": "data_type"},
            kind="harmful",
            kinds={
                "vanilla_harmful": "harmful",
                "adversarial_harmful": "harmful",
                "vanilla_benign": "harmless",
                "adversarial_benign": "harmless",
            },
        ),
        "ultrachat": PublicSet(
            source="hf:HuggingFaceH4/ultrachat_200k#train_sft",
            licence="MIT",
            # Its "messages" hold the whole conversation, which "prompt" begins.
            columns={"goal": "prompt", "prompt": ""},
            kind="harmless",
            note="for the retain set; take a few thousand rows with data.limit",
        ),
        "alpaca": PublicSet(
            source="hf:tatsu-lab/alpaca#train",
            licence="CC BY-NC 4.0",
            columns={"goal": "instruction"},
            kind="harmless",
            note="for the retain set; not for commercial use",
        ),
    }
)
