"""Read people's labels of refusal, as published sets write them."""

from __future__ import annotations

import re

REFUSAL, COMPLIANCE = "refusal", "compliance"
_REFUSAL = ("refus", "reject", "declin", "partial")
_COMPLIANCE = ("compl", "answer", "comply", "none", "no_refusal", "helpful")
# "no refusal", "non-compliant", "does not comply", "unanswered".
_NEGATED = re.compile(
    r"(?:\b(?:no|non|not|never|without)[\s_-]*|(?<=_)(?:no|non|not)[\s_-]*|\bun)"
    r"(?P<what>refus|reject|declin|compl|answer|helpful)"
)
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
    negated = _NEGATED.search(text)
    if negated is not None:
        return COMPLIANCE if negated["what"].startswith(_REFUSAL) else REFUSAL
    is_refusal = any(word in text for word in _REFUSAL)
    is_compliance = any(word in text for word in _COMPLIANCE)
    if is_refusal == is_compliance:  # "partial compliance" is a refusal in part
        return REFUSAL if "partial" in text else None
    return REFUSAL if is_refusal else COMPLIANCE
