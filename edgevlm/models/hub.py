"""The Hugging Face hub: what a repository holds, and one file of it, resumed where it stopped.

Addresses, tokens, sessions and errors are huggingface_hub's own. The bytes are streamed
here, because `hf_hub_download` throws away what it has when a download breaks off.
"""

from __future__ import annotations

import os
import queue
import re
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from edgevlm.errors import EdgeVLMError, ModelUnavailable, Offline, UnknownModel
from edgevlm.models.names import HubId, check_path
from edgevlm.models.receive import Expected, Receiver
from edgevlm.models.sources import HubSource

T = TypeVar("T")

# Name servers and addresses that don't answer are tried one after the other, each with a
# timeout of its own; a person waits for the sum.
_LISTING_SECONDS = 8.0
_STALL_SECONDS = 10.0
_PAUSES = (0.5, 1.0, 2.0, 4.0)
_ERRNO = re.compile(r"^\[Errno -?\d+\] ")
_TRANSIENT = {408, 429, 500, 502, 503, 504}


@dataclass(frozen=True, slots=True)
class HubListing:
    """A repository at one commit: `hub.revision` is its hash. Paths that could do harm are out."""

    hub: HubId
    files: Mapping[str, Expected]


def list_files(hub: HubId) -> HubListing:
    """Ask what `hub` holds, within a few seconds. Raises UnknownModel, ModelUnavailable."""
    from huggingface_hub import HfApi

    api = HfApi(endpoint=endpoint())
    try:
        info = _within(
            _LISTING_SECONDS,
            lambda: api.model_info(
                hub.repo_id,
                revision=hub.revision,
                files_metadata=True,
                timeout=_LISTING_SECONDS,
            ),
        )
        files = dict(_expected(sibling) for sibling in info.siblings or [])
        files.pop("", None)
        return HubListing(replace(hub, revision=_commit(info.sha)), files)
    except Exception as error:
        _raise_explained(error, hub, "")


def fetch(source: HubSource, receiver: Receiver) -> None:
    """Stream one file of one commit into an opened receiver, going on after a cut.

    Raises UnknownModel, ModelUnavailable, ModelCorrupt, and OSError of the disk.
    """
    if _copy_from_cache(source, receiver):
        return
    failures = 0
    while not receiver.complete:
        before = receiver.size
        try:
            _stream(source, receiver)
            return
        except Exception as error:
            failures = 0 if receiver.size > before else failures + 1
            if failures >= len(_PAUSES) or not _is_transient(error):
                _raise_explained(error, source.hub, source.path)
            time.sleep(_PAUSES[failures])


def _stream(source: HubSource, receiver: Receiver) -> None:
    from huggingface_hub import get_session, hf_hub_url, hf_raise_for_status
    from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]

    url = hf_hub_url(
        source.hub.repo_id, source.path, revision=source.hub.revision, endpoint=endpoint()
    )
    if receiver.size and receiver.expected.size is None:
        receiver.restart()
    # A compressed answer has other offsets than the file.
    headers = build_hf_headers(library_name="edgevlm") | {"Accept-Encoding": "identity"}
    if receiver.size:
        headers["Range"] = f"bytes={receiver.size}-"
    with get_session().stream("GET", url, headers=headers, timeout=_STALL_SECONDS) as response:
        hf_raise_for_status(response)
        if receiver.size and not _continues(response.headers, receiver.size):
            receiver.restart()
        for chunk in response.iter_bytes():
            receiver.write(chunk)


def _continues(headers: Mapping[str, str], offset: int) -> bool:
    return headers.get("content-range", "").startswith(f"bytes {offset}-")


def _copy_from_cache(source: HubSource, receiver: Receiver) -> bool:
    """Take what another program has fetched into `HF_HOME` already."""
    from huggingface_hub import try_to_load_from_cache

    cached = try_to_load_from_cache(source.hub.repo_id, source.path, revision=source.hub.revision)
    if not isinstance(cached, str) or Path(cached).stat().st_size != receiver.expected.size:
        return False
    if receiver.size:
        receiver.restart()
    with Path(cached).open("rb") as file:
        while chunk := file.read(2**20):
            receiver.write(chunk)
    return True


def endpoint() -> str:
    """The hub's address. huggingface_hub itself reads the setting once, at its import."""
    return os.environ.get("HF_ENDPOINT", "").rstrip("/") or "https://huggingface.co"


def endpoint_shown() -> str:
    """The same for people, without the user name and password of a mirror's address."""
    scheme, separator, rest = endpoint().partition("://")
    place, slash, path = rest.partition("/")
    return f"{scheme}{separator}{place.rpartition('@')[2]}{slash}{path}"


def _expected(sibling: Any) -> tuple[str, Expected]:
    try:
        path = check_path(sibling.rfilename)
    except ValueError:
        return "", Expected()
    if sibling.lfs is not None:
        return path, Expected(sibling.lfs.size, sha256=sibling.lfs.sha256)
    return path, Expected(sibling.size, git_sha1=sibling.blob_id if sibling.size else None)


def _commit(sha: str | None) -> str:
    if not sha or not sha.isalnum():
        raise ValueError("no commit hash")
    return sha


def _within(seconds: float, call: Callable[[], T]) -> T:
    """Run `call` on a thread, so that waiting for it has an end and Ctrl-C works."""
    answer: queue.SimpleQueue[tuple[bool, Any]] = queue.SimpleQueue()

    def work() -> None:
        try:
            answer.put((True, call()))
        except BaseException as error:
            answer.put((False, error))

    threading.Thread(target=work, name="edgevlm-hub", daemon=True).start()
    try:
        done, value = answer.get(timeout=seconds)
    except queue.Empty:
        raise TimeoutError(f"no answer within {seconds:.0f} s") from None
    if not done:
        raise value
    result: T = value
    return result


def _http_error() -> type[Exception]:
    """The root of the HTTP library's errors, whichever one huggingface_hub is built on."""
    from huggingface_hub.errors import HfHubHTTPError

    return next(c for c in HfHubHTTPError.__mro__ if c.__name__ == "HTTPError")


def _is_transient(error: Exception) -> bool:
    from huggingface_hub.errors import HfHubHTTPError

    if isinstance(error, HfHubHTTPError):
        return error.response.status_code in _TRANSIENT
    return isinstance(error, _http_error())


def _raise_explained(error: Exception, hub: HubId, path: str) -> NoReturn:
    """Raise what the user should hear; an error that is neither the hub's nor ours as it is."""
    from huggingface_hub import errors

    if isinstance(error, EdgeVLMError):
        raise error
    if isinstance(error, errors.OfflineModeIsEnabled):
        raise Offline(
            f"Can't fetch {hub}: HF_HUB_OFFLINE forbids it.", hint="Unset HF_HUB_OFFLINE."
        ) from error
    if isinstance(error, errors.HfHubHTTPError):
        raise _refused(error, hub, path) from error
    if isinstance(error, (_http_error(), TimeoutError)):
        raise ModelUnavailable(
            f"Can't reach the hub at {endpoint_shown()} for {hub.repo_id}: {_reason(error)}.",
            hint="Check the connection and HF_ENDPOINT; what came so far is kept.",
            retryable=True,
        ) from error
    if isinstance(error, (ValueError, TypeError, KeyError, AttributeError)):
        raise ModelUnavailable(
            f"{endpoint_shown()} did not answer like a Hugging Face hub: {_reason(error)}.",
            hint="Check HF_ENDPOINT, and whether the network asks for a login first.",
        ) from error
    raise error


def _refused(error: Any, hub: HubId, path: str) -> ModelUnavailable | UnknownModel:
    from huggingface_hub import errors

    status = error.response.status_code
    what = f"{hub.repo_id}/{path}" if path else str(hub)
    if isinstance(error, errors.GatedRepoError) or status == 403:
        return ModelUnavailable(
            f"The hub refuses access to {what}.",
            hint=f"Accept its terms at {endpoint_shown()}/{hub.repo_id} and set HF_TOKEN to a token"
            " of that account.",
            retryable=False,
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return UnknownModel(
            f"{hub.repo_id} has no revision {hub.revision!r}.", hint="Leave it out to take `main`."
        )
    if isinstance(error, errors.RepositoryNotFoundError):
        return UnknownModel(
            f"The hub has no repository {hub.repo_id}, or it is private.",
            hint="Check the name; for a private one set HF_TOKEN.",
        )
    if status == 401:
        return ModelUnavailable(
            f"The hub does not accept the token for {what}.",
            hint="Set HF_TOKEN to a valid token, or unset it.",
            retryable=False,
        )
    if status == 404:
        return ModelUnavailable(
            f"{hub.repo_id} holds no file {path!r}.",
            hint="The repository has changed; `edgevlm model list --all` shows other models.",
            retryable=False,
        )
    return ModelUnavailable(
        f"The hub answered {status} for {what}.",
        hint="Try again later.",
        retryable=status in _TRANSIENT,
    )


def _reason(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return _ERRNO.sub("", lines[0]).rstrip(".") if lines else type(error).__name__
