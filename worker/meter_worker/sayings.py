"""What an answer may say in words, as patterns.

Each is matched against one `member: value` at a time, in lower case, blanks for `_` and `-`.
"""

from __future__ import annotations

import re
from typing import NamedTuple

__all__ = ["AN_ERROR", "EXISTS", "IN_USE", "REUSED", "TOO_LARGE", "Saying"]


class Saying(NamedTuple):
    """Something that can be said in many words."""

    meaning: str
    pattern: re.Pattern[str]

    def is_in(self, words: str) -> bool:
        """Return whether these words say it."""
        return self.pattern.search(words) is not None


# The words for an identity, and of what else may exist already or be there twice.
_OURS = (
    r"(?:idempotency key|(?:transaction|event|record|external) id|id"
    r"|(?:usage |metering )?(?:event|record)|transaction)"
)
_NOT_OURS = (
    r"topic|schema|subject|partition|consumer|connector|cluster|broker|field|member|propert(?:y|ie)"
    r"|column|header|json|parameter|payload|body|content|different|another|progress"
    r"|tenant|customer|account|organi[sz]ation|device|meter|plan|user|name|sequence"
)
EXISTS = Saying(
    "our id exists already",
    re.compile(
        rf"^(?!.*\b(?:{_NOT_OURS})s?\b)(?:"
        r"(?:error|error code|code|message|detail|title|reason): "
        r"(?:value )?(?:already exists?|duplicate)\W*$"
        rf"|.*\b{_OURS}\b.{{0,80}}\balready "
        r"(?:exists?|(?:been |was )?(?:received|ingested|recorded|accepted|stored|processed))\b"
        rf"|.*\bduplicated? {_OURS}\b"
        r")"
    ),
)
REUSED = Saying(
    "the idempotency key was used with other content",
    re.compile(
        r"\bidempotency key.*\b(?:already used|re ?used|different|another|mismatch|not match"
        r"|same (?:payload|parameters|request|body))"
    ),
)
IN_USE = Saying(
    "a request with this key is under way",
    re.compile(
        r"\b(?:idempotency key|request|key)\b.*\b(?:in use|in progress|in flight|outstanding"
        r"|being processed|still (?:running|processing)|concurrent)"
    ),
)
AN_ERROR = Saying("an error", re.compile(r"^[^:]*\berrors?\b"))
TOO_LARGE = Saying(
    "too large",
    re.compile(r"maximum message size|max\.request\.size|recordtoolarge|larger than"),
)
