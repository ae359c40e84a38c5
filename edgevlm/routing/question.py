"""What sort of thing a question asks for, and what sort of answer came: by words, no model.

English only, as the rules go; whatever fits none of them is `other`, which costs confidence its
knowledge of the task and nothing else.
"""

from __future__ import annotations

import re

QUESTION_TYPES = (
    "yes or no", "choice", "count", "colour", "where", "read", "describe", "name", "other",
)  # fmt: skip
ANSWER_TYPES = ("yes", "no", "number", "declined", "hedged", "other")

_COUNT = re.compile(r"\bhow (?:many|often)\b|\bcount\b|\bnumber of\b")
_COLOUR = re.compile(r"\bcolou?rs?\b")
_WHERE = re.compile(r"\bwhere\b|\bwhich (?:side|corner)\b")
_READ = re.compile(
    r"\bread\b|\b(?:words?|text|letters?|written|spell(?:ed|s)?|caption)\b|\bsays?\b|\bvalues?\b"
)
_DESCRIBE = re.compile(r"\b(?:describe|description|tell me about|sentence|summar\w+)\b")
_CHOICE = re.compile(r"^(?!(?:and|but)\b).*\bor\b")
_POLAR = re.compile(
    r"(?:and |but |so |then )?(?:is|are|was|were|do|does|did|can|could|has|have|had|will|would"
    r"|should|isn't|aren't|doesn't|don't)\b"
)
_NAME = re.compile(
    r"\b(?:what|which|identify|name)\b.*\b(?:this|it|these|picture|image|photo|photograph|here|see"
    r"|object|thing|shape|animal|kind|type|main)\b|^(?:what|which)(?:'s| is| are) "
)

_DECLINED = re.compile(
    r"\b(?:can't|cannot|can not|couldn't|don't know|do not know|not sure|unsure|unclear|unable"
    r"|no idea|isn't clear|hard to say)\b"
)
_HEDGED = re.compile(
    r"\b(?:probably|maybe|perhaps|possibly|might|may be|either|looks like|seems)\b"
)
_NUMBER = re.compile(
    r"\d|\b(?:zero|one|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve)\b"
)


def question_type(question: str) -> str:
    """One of QUESTION_TYPES."""
    text = " ".join(question.lower().replace("\u2019", "'").split())
    if _DESCRIBE.search(text):
        return "describe"
    if _COUNT.search(text):
        return "count"
    if _POLAR.match(text):
        return "choice" if _CHOICE.search(text) else "yes or no"
    if _COLOUR.search(text):
        return "colour"
    if _CHOICE.search(text):
        return "choice"
    if _WHERE.search(text):
        return "where"
    if _READ.search(text):
        return "read"
    return "name" if _NAME.search(text) else "other"


def answer_type(answer: str) -> str:
    """One of ANSWER_TYPES."""
    text = answer.lower().replace("\u2019", "'").lstrip()
    if _DECLINED.search(text):
        return "declined"
    if text.startswith("yes"):
        return "yes"
    if re.match(r"no\b|nope\b|not\b", text):
        return "no"
    if _HEDGED.search(text):
        return "hedged"
    return "number" if _NUMBER.search(text) else "other"
