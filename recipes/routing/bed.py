"""The questions of the test bed: held-out photographs, composed scenes, drawings and easy-VQA.

They are edgevlm-tiny's own held-out tasks (recipes/tiny/tasks.py, scene_tasks.py), mixed so that
the first n questions are a fair sample of all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

import beside_tiny  # noqa: F401
import scene_bed
import scene_tasks
import tasks
from tasks import Item


@dataclass(frozen=True, slots=True)
class Task:
    """`count` questions, of `scenes` as many scenes, which `draw` gives in an order of its own.
    `kind` is what figures are told by, and empty where it is each question's own."""

    name: str
    kind: str
    draw: Callable[[int], Iterator[Item]]
    count: int


TASKS = (
    Task("photos", "naming", tasks.photos, 80),
    Task("concepts", "naming", tasks.concepts, 300),
    Task("photo-presence", "presence", tasks.photo_presence, 160),
    Task("scenes", "", scene_bed.scenes, 320),
    Task("easyvqa", "easy-VQA", tasks.easy_vqa, 1200),
    Task("words", "reading", scene_tasks.words, 150),
    Task("charts", "reading", scene_tasks.charts, 80),
    Task("nothing", "honesty", tasks.nothing, 45),
    Task("unknowable", "honesty", tasks.unknowable, 100),
    Task("photo-absence", "honesty", tasks.photo_absence, 80),
    Task("photo-descriptions", "description", tasks.photo_descriptions, 80),
)
_KIND_OF = {task.name: task.kind for task in TASKS}


def kind_of(task: str, part: str) -> str:
    """What figures are told by: a scene's questions are of several kinds."""
    return _KIND_OF[task] or {"not there": "honesty"}.get(part, part)


def questions(chosen: Sequence[Task] = TASKS) -> Iterator[tuple[str, Task, Item]]:
    """A name of its own for each, the task, and the question; always in the same order.

    A task's questions about one picture follow each other, so that it is read once.
    """
    streams = {task: groupby(task.draw(task.count), _picture) for task in chosen}
    taken, asked = (dict.fromkeys(chosen, 0) for _ in range(2))
    while streams:
        task = min(streams, key=lambda task: (taken[task] + 0.5) / task.count)
        _, about_one = next(streams[task], (None, None))
        if about_one is None:
            del streams[task]
            continue
        items = list(about_one)
        for item in items:
            yield f"{task.name}/{asked[task]}", task, item
            asked[task] += 1
        taken[task] += 1 if task.name == "scenes" else len(items)


def _picture(item: Item) -> str:
    return item.picture
