"""A table of features and verdicts as one small file, for tests and for readers who would refit."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from edgevlm.routing.answers import Table
from edgevlm.routing.calibration import Subject
from edgevlm.routing.features import NAMES


def pack(path: Path, subject: Subject, table: Table) -> None:
    """Features in float32 [n, d]. Pictures keep their names, which a split goes by."""
    pictures, picture_ids = np.unique(table.pictures, return_inverse=True)
    tasks, task_ids = np.unique(table.tasks, return_inverse=True)
    np.savez_compressed(
        path,
        subject=json.dumps(subject.to_dict()),
        names=np.array(NAMES),
        features=table.features.astype(np.float32),
        right=table.right,
        strong=np.zeros(0, bool) if table.strong is None else table.strong,
        pictures=pictures,
        picture_ids=picture_ids.astype(np.int32),
        tasks=tasks,
        task_ids=task_ids.astype(np.int8),
        baseline_names=np.array(list(table.baselines)),
        baselines=np.stack(list(table.baselines.values())).astype(np.float32),
    )


def unpack(path: Path) -> tuple[Subject, Table]:
    """Without the features of first tokens. Raises ValueError for other features than today's."""
    with np.load(path) as file:
        if tuple(file["names"]) != NAMES:
            raise ValueError(f"{path.name} is of other features")
        strong = file["strong"]
        table = Table(
            file["features"].astype(np.float64),
            {},
            {},
            dict(zip(file["baseline_names"], file["baselines"].astype(float), strict=True)),
            file["right"],
            tuple(file["pictures"][file["picture_ids"]].tolist()),
            tuple(file["tasks"][file["task_ids"]].tolist()),
            strong if len(strong) else None,
        )
        return Subject.of_dict(json.loads(str(file["subject"]))), table
