"""What of a question's wording can't change its answer."""

from __future__ import annotations

import re
import unicodedata

_SPACES = re.compile(" {2,}")
# Where these stand, white space may be what is asked about, or part of what is quoted.
_WHITE_SPACE_MATTERS = re.compile(
    "[\\n\\r\\t`\"'\u2018-\u201f\u2039\u203a\u00ab\u00bb\u300c-\u300f]"
    "|spac|blank|gap|indent|align|character",
    re.IGNORECASE,
)
_OPENER = (
    r"(?:are|can|could|describe|did|do|does|has|have|how|is|tell|was|were|what|when|where|which"
    r"|who|whose|why)\b"
)
_OPENS = re.compile(_OPENER, re.IGNORECASE)
_PLEASE = re.compile(rf"\Aplease,? (?={_OPENER})|, please(?=[.?!]?\Z)", re.IGNORECASE)


def normalised(text: str) -> str:
    """The question as exact answers are kept by.

    Canonically equivalent characters become one (Unicode NFC, UAX 15), white space at the ends
    goes, and runs of spaces become one, but not where lines, quotes, or words about space say
    that they may count. Letter case stays: "Is this Polish?" isn't "Is this polish?".
    """
    text = unicodedata.normalize("NFC", text).strip()
    return text if _WHITE_SPACE_MATTERS.search(text) else _SPACES.sub(" ", text)


def loosened(text: str) -> str:
    """The question as answers of near pictures are kept by: `normalised`, and the case of a first
    word that opens a question, "please" before or after it, and a last question mark don't count.

    Every other word stays as it is and where it is. So numbers and negations of two questions
    that are the same here agree, and so do their names, sides and colours.
    """
    text = normalised(text)
    if "\n" in text:
        return text
    text = _PLEASE.sub("", text).removesuffix("?").strip()
    opener = _OPENS.match(text)
    return text if opener is None else opener[0].lower() + text[opener.end() :]
