"""What differs from family to family on the disk; the tests hold it against each family."""

from __future__ import annotations

# Their published checkpoints hold one tensor for all experts of a layer; the others one per expert.
DISK_FUSED: frozenset[str] = frozenset(
    {
        "aria_text",
        "gemma4_text",
        "gpt_oss",
        "granitemoe",
        "granitemoe_swa",
        "granitemoehybrid",
        "granitemoeshared",
        "hy_v4",
        "inkling2_text",
        "inkling_text",
        "minimax_m3_vl_text",
    }
)

# Their decoder layers hand on more than the hidden states, so that none of them can be skipped.
HANDS_ON_MORE: frozenset[str] = frozenset({"glm_moe_dsa", "hy_v4"})
