"""Every error that EdgeVLM raises on purpose.

EdgeVLMError                     exit code 1
├── UsageError                   2   wrong arguments or bad input
│   ├── SettingsError                a setting that can't be read
│   ├── UnknownRuntime               no runtime of that name
│   ├── MediaError                   bytes that are not a picture we take
│   │   ├── UnreadableMedia              missing file, empty, broken, refused URL
│   │   └── MediaTooLarge                over the pixel, byte or time limit
│   ├── TemplateError                a chat template that fails or oversteps its limits
│   └── PromptTooLong                more tokens than the context holds
├── ModelError                   3   model or adapter not to be had
│   ├── UnknownModel                 no model of that name
│   ├── ModelUnavailable             it exists, and can't be fetched now
│   │   └── Offline                      EDGEVLM_OFFLINE=1 forbids the fetch
│   ├── ModelCorrupt                 files missing, altered or inconsistent
│   ├── UnknownAdapter               no adapter of that name
│   ├── AdapterCorrupt               its files are missing, altered or inconsistent
│   └── AdapterMismatch              it was made for another base
├── DeviceError                  4   this device can't do it
│   ├── DoesNotFit                   not enough memory
│   ├── NoSpace                      not enough disk
│   ├── NotSupported                 a runtime or feature this device lacks
│   └── RuntimeFailed                the runtime itself reported a failure
├── CloudError                   5   the cloud refused or failed
│   ├── CloudNotAllowed              not set up, no consent, over budget: nothing was sent
│   ├── CloudRefused                 the provider takes no such key, model or question
│   ├── CloudUnavailable             it can't be reached, is busy, or took too long
│   └── CloudAnswerBroken            what came is no answer
└── Interrupted                  130 cancelled by the user

Each carries what happened (`str(error)`), what to do next (`hint`), and
whether the same call may succeed later (`retryable`).
"""

from __future__ import annotations


class EdgeVLMError(Exception):
    """Base of the tree. `message` says what happened, `hint` what to do next."""

    exit_code = 1
    retryable = False

    def __init__(
        self, message: str, *, hint: str | None = None, retryable: bool | None = None
    ) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        if retryable is not None:
            self.retryable = retryable


class UsageError(EdgeVLMError):
    exit_code = 2


class SettingsError(UsageError):
    pass


class UnknownRuntime(UsageError):
    pass


class MediaError(UsageError):
    pass


class UnreadableMedia(MediaError):
    pass


class MediaTooLarge(MediaError):
    pass


class TemplateError(UsageError):
    pass


class PromptTooLong(UsageError):
    pass


class ModelError(EdgeVLMError):
    exit_code = 3


class UnknownModel(ModelError):
    pass


class ModelUnavailable(ModelError):
    retryable = True


class Offline(ModelUnavailable):
    retryable = False


class ModelCorrupt(ModelError):
    pass


class UnknownAdapter(ModelError):
    pass


class AdapterCorrupt(ModelError):
    pass


class AdapterMismatch(ModelError):
    pass


class DeviceError(EdgeVLMError):
    exit_code = 4


class DoesNotFit(DeviceError):
    pass


class NoSpace(DeviceError):
    pass


class NotSupported(DeviceError):
    pass


class RuntimeFailed(DeviceError):
    pass


class CloudError(EdgeVLMError):
    exit_code = 5


class CloudNotAllowed(CloudError):
    pass


class CloudRefused(CloudError):
    pass


class CloudUnavailable(CloudError):
    retryable = True


class CloudAnswerBroken(CloudError):
    pass


class Interrupted(EdgeVLMError):
    exit_code = 130
