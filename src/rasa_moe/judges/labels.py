"""Read people's labels of refusal, as published sets write them."""

from __future__ import annotations

REFUSAL, COMPLIANCE = "refusal", "compliance"
_REFUSAL = ("refus", "reject", "declin", "partial")
_COMPLIANCE = ("compl", "answer", "comply", "none", "no_refusal", "helpful")
_TRUE = frozenset({"1", "1.0", "true", "yes", "y", "t"})
_FALSE = frozenset({"0", "0.0", "false", "no", "n", "f"})


def refusal_label(value: object) -> str | None:
    """Return "refusal" or "compliance" for a label, or None for one that says neither.

    Refusal in part counts as refusal. Known are words ("2_full_refusal", "full compliance")
    and truth values, which say whether the answer refuses.
    """
    text = str(value).strip().casefold() if value is not None else ""
    if text in _TRUE:
        return REFUSAL
    if text in _FALSE:
        return COMPLIANCE
    if "no refusal" in text or "no_refusal" in text or "not refus" in text or "non-refus" in text:
        return COMPLIANCE
    is_refusal = any(word in text for word in _REFUSAL)
    is_compliance = any(word in text for word in _COMPLIANCE)
    if is_refusal == is_compliance:  # "partial compliance" is a refusal in part
        return REFUSAL if "partial" in text else None
    return REFUSAL if is_refusal else COMPLIANCE
