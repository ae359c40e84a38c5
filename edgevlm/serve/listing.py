"""The models that clients see: the base, and `BASE:ADAPTER` for each installed adapter of it."""

from __future__ import annotations

import time
from typing import Any

from edgevlm.adapters.base import check_declared, describe_base
from edgevlm.adapters.choice import AdapterChoice, read_choice
from edgevlm.adapters.resident import ActiveSet
from edgevlm.adapters.store import AdapterStore, InstalledAdapter
from edgevlm.errors import AdapterMismatch, EdgeVLMError
from edgevlm.model import Model
from edgevlm.serve.errors import ApiError, api_error
from edgevlm.serve.protocol import Own
from edgevlm.settings import Settings


class Listing:
    """What one loaded model is asked for by. Installed names only: a request names no folder
    of this device, and has nothing downloaded."""

    def __init__(self, model: Model, settings: Settings) -> None:
        self.model = model
        self._settings = settings
        self._store = AdapterStore(settings)
        self._base = describe_base(model.files)
        self._created = int(time.time())

    def all(self) -> list[dict[str, Any]]:
        adapters = [self._entry(adapter) for adapter in self._fitting()]
        return [self._entry(None), *adapters]

    def one(self, name: str) -> dict[str, Any]:
        """Raises ApiError for a name that is not listed."""
        for entry in self.all():
            if entry["id"] == name:
                return entry
        raise self._unknown(name)

    def adapters(self, model: str, own: Own) -> ActiveSet:
        """The adapters that a request asks for, by its model's name or by its own field, which
        goes before. Raises ApiError."""
        base, colon, suffix = model.partition(":")
        if base != self.model.name or (colon and not suffix):
            raise self._unknown(model)
        choice: AdapterChoice = suffix or None
        where = "model"
        if isinstance(own.adapter, (str, list, dict)) or own.adapter is None:
            choice, where = own.adapter, "edgevlm.adapter"
        try:
            wanted = read_choice(choice)
            if own.scale is not None:
                if len(wanted) != 1:
                    raise ApiError(400, "A scale goes with one adapter.", param="edgevlm.scale")
                wanted = read_choice({next(iter(wanted)): own.scale})
            installed = {adapter.name for adapter in self._installed()} if wanted else set()
            for name in wanted:
                if name not in installed:
                    raise self._unknown(f"{base}:{name}", where)
            return ActiveSet(
                [
                    (self.model.adapter(name, self._settings), scale)
                    for name, scale in wanted.items()
                ]
            )
        except EdgeVLMError as error:
            raise api_error(error, param=where) from error

    def _installed(self) -> list[InstalledAdapter]:
        return list(self._store.list())

    def _fitting(self) -> list[InstalledAdapter]:
        fitting = []
        for adapter in self._installed():
            try:
                check_declared(adapter.name, adapter.manifest.bases, self._base)
            except AdapterMismatch:
                continue
            fitting.append(adapter)
        return fitting

    def _entry(self, adapter: InstalledAdapter | None) -> dict[str, Any]:
        model, manifest = self.model, adapter.manifest if adapter else None
        return {
            "id": f"{model.name}:{adapter.name}" if adapter else model.name,
            "object": "model",
            "created": self._created,
            "owned_by": "edgevlm",
            "edgevlm": {
                "base": model.name,
                "adapter": adapter.name if adapter else None,
                "title": manifest.title if manifest else None,
                "scale": manifest.scale if manifest else None,
                "notice": manifest.notice if manifest else None,
                "runtime": model.runtime,
                "quantization": model.quantization,
                "context_length": model.language.context_length,
                "d_model": model.language.d_model,
                "fingerprint": model.fingerprint,
            },
        }

    def _unknown(self, name: str, where: str = "model") -> ApiError:
        known = ", ".join(entry["id"] for entry in self.all())
        return ApiError(
            404,
            f"There is no model {name[:200]!r} here. There is: {known}.",
            param=where,
            code="model_not_found",
        )
