"""What an error is called between a server and its clients, whichever end raises it."""

from __future__ import annotations

from edgevlm.errors import (
    AdapterCorrupt,
    AdapterMismatch,
    CloudError,
    DeviceError,
    EdgeVLMError,
    Interrupted,
    MediaTooLarge,
    ModelError,
    NotSupported,
    PromptTooLong,
    UnknownAdapter,
    UnknownModel,
    UnreadableMedia,
    UsageError,
)

# An error is told as the first that it is an instance of: its HTTP status and its code.
KINDS: tuple[tuple[type[EdgeVLMError], int, str], ...] = (
    (MediaTooLarge, 413, "media_too_large"),
    (UnreadableMedia, 400, "media_unreadable"),
    (PromptTooLong, 400, "context_length_exceeded"),
    (UsageError, 400, "invalid_value"),
    (UnknownModel, 404, "model_not_found"),
    (UnknownAdapter, 404, "adapter_not_found"),
    (AdapterMismatch, 400, "adapter_mismatch"),
    (AdapterCorrupt, 500, "adapter_corrupt"),
    (NotSupported, 400, "not_supported"),
    (ModelError, 500, "model_error"),
    (DeviceError, 500, "runtime_failed"),
    (CloudError, 502, "cloud_failed"),
    (Interrupted, 499, "cancelled"),
)
_CLASSES: dict[str, type[EdgeVLMError]] = {code: kind for kind, _, code in KINDS}


def error_of(code: str | None, status: int) -> type[EdgeVLMError]:
    """The class of an error that a server told, CloudError for one of no class of ours."""
    if code in _CLASSES:
        return _CLASSES[code]
    return UsageError if status in (400, 409, 413) else CloudError
