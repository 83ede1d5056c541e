"""What single families cannot do, and why; the tests hold each of these statements against the family."""

from __future__ import annotations

NO_LIVE_REPLAY: dict[str, str] = {
    "phimoe": "it picks each slot by a maximum of its own instead of one top-k",
}
NO_SILENCE: dict[str, str] = {
    "inkling_text": "its router scores the shared experts in the same linear map",
}
ROUTER_WEIGHS_MORE: dict[str, str] = {
    "inkling_text": "its router also weighs the shared experts, which are not replayed",
}
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
