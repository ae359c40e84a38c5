"""Made-up answers of which it is known how likely each is right."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from edgevlm.messages import Token, TopToken
from edgevlm.routing.answers import Answer
from edgevlm.routing.calibration import Subject
from edgevlm.routing.features import Asked
from edgevlm.routing.picture import PictureStats

SUBJECT = Subject.of("a-model", 2, "decoder q4, vision fp16")
STATS = PictureStats(640, 480, 120.0, 40.0, 0.02, 0.3)
QUESTIONS = ("Is there a dog?", "How many cats are there?", "What colour is the car?")


def token(logprob: float, text: str = "yes", id: int = 7) -> Token:
    """One token, and a second candidate that has what is left."""
    rest = float(np.log(max(1 - np.exp(logprob), 1e-6)))
    return Token(id, text, logprob, (TopToken(id, text, logprob), TopToken(id + 1, "no", rest)))


def judged(count: int, *, seed: int = 0, per_picture: int = 2) -> list[Answer]:
    """Answers of three tokens that are right with the probability of their first."""
    rng = np.random.default_rng(seed)
    answers = []
    for i in range(count):
        p = float(rng.uniform(0.2, 0.99))
        tokens = (token(float(np.log(p))), token(-0.01, " it"), token(-0.001, ""))
        answers.append(
            Answer(
                SUBJECT,
                tokens,
                Asked(QUESTIONS[i % 3], STATS, 150, 102),
                bool(rng.random() < p),
                f"{seed}/{i // per_picture}",
                QUESTIONS[i % 3],
            )
        )
    return answers


def as_row(answer: Answer) -> dict[str, Any]:
    """The line of a file that says the same."""
    return {
        "text": "".join(token.text for token in answer.tokens),
        "model": answer.subject.model,
        "edition": answer.subject.edition,
        "quantization": answer.subject.quantization,
        "adapter": [],
        "usage": {
            "prompt_tokens": answer.asked.prompt_tokens,
            "image_tokens": answer.asked.image_tokens,
        },
        "tokens": [
            {
                "id": t.id,
                "text": t.text,
                "logprob": t.logprob,
                "top": [{"id": c.id, "text": c.text, "logprob": c.logprob} for c in t.top],
            }
            for t in answer.tokens
        ],
        "question": answer.asked.question,
        "picture": answer.picture,
        "picture_stats": STATS.to_dict(),
        "task": answer.task,
        "right": answer.right,
    }


def write(path: Path, answers: list[Answer]) -> Path:
    path.write_text("".join(json.dumps(as_row(a)) + "\n" for a in answers), encoding="utf-8")
    return path
