"""Models on the Hugging Face Hub: addresses (hf://OWNER/NAME), downloads of one file, and uploads of a folder."""

from __future__ import annotations

import os
import re
import shutil
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from udpm.core.errors import UserError, first_line
from udpm.core.files import OFFLINE, atomic_path, sha256
from udpm.core.folders import CONTENTS
from udpm.core.kinds import BUNDLE, CARD
from udpm.core.reading import read_json

if TYPE_CHECKING:
    from huggingface_hub import HfApi, ModelInfo

ADDRESS = re.compile(r"hf:/{1,2}(?P<name>[^@]*)(?:@(?P<revision>.*))?", re.DOTALL)
"""An address; `Path` makes one slash of two."""
CONNECT_SECONDS, IDLE_SECONDS = 10, 120
"""Patience with a connection, and with a server that neither sends nor takes anything."""
README = "README.md"
MADE_BY_HUB = {".gitattributes"}
"""Files that a new repository has."""
LARGEST_LIST = 1 << 20
"""Maximal bytes to read of a bundle's record."""
SHOWN = 3
"""Largest number of names in an error."""
LONGEST = 300
"""Largest number of characters to quote of an error."""
DEEPEST = 10
"""Largest number of causes of an error to look at."""
REFUSALS = (401, 403, 404)
LOG_IN = "set HF_TOKEN or run `hf auth login`"


def is_address(path: str | Path) -> bool:
    """Return whether a path is the address of a model on the Hub, such as hf://owner/name@main."""
    return ADDRESS.fullmatch(str(path)) is not None


def check_name(name: str) -> None:
    """Check the name of a repository, without a call to the Hub.

    Raises:
        UserError: not a name, or huggingface_hub is missing.
    """
    _need(name)
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError:
        valid = False
    else:
        owner, _, rest = name.partition("/")
        valid = bool(owner and rest)
    if not valid:
        raise UserError(f"hf://{name}: not the name of a repository; expected OWNER/NAME, of letters, digits, -, _, .")


def download(address: str | Path, file: str) -> Path:
    """Return the path of a repository's file in huggingface_hub's cache, after downloading it if it is new.

    Without a network, or with HF_HUB_OFFLINE or UDPM_OFFLINE, the cached file is taken.

    Args:
        address: see `is_address`.
        file: name in the repository.

    Raises:
        UserError: no such repository, revision or file, one that is private, no network, or huggingface_hub is missing.
    """
    found = ADDRESS.fullmatch(str(address))
    name, revision = (found["name"].rstrip("/"), found["revision"]) if found else ("", None)
    where = f"hf://{name}" + (f"@{revision}" if revision is not None else "")
    _need(where)
    check_name(name)
    if revision == "":
        raise UserError(f"{where}: names no revision after @; leave @ out for the newest")
    from huggingface_hub import constants, get_hf_file_metadata, hf_hub_download, hf_hub_url
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, LocalEntryNotFoundError

    with _one_line(where):
        unreachable: Exception | None = None
        offline = bool(os.environ.get(OFFLINE)) or constants.HF_HUB_OFFLINE
        if not offline:
            try:
                # The download itself tries for half a minute before it gives up.
                get_hf_file_metadata(hf_hub_url(name, file, revision=revision), timeout=CONNECT_SECONDS)
            except EntryNotFoundError:
                raise UserError(f"{where}: has no {file}; expected a model of udpm push") from None
            except (HfHubHTTPError, _transport_error()) as error:
                if _status(error) in REFUSALS:
                    raise
                unreachable = error
        try:
            return Path(
                hf_hub_download(
                    name, file, revision=revision, local_files_only=offline or unreachable is not None,
                    etag_timeout=CONNECT_SECONDS, library_name="udpm",
                )
            )  # fmt: skip
        except LocalEntryNotFoundError:
            if unreachable is not None:
                raise unreachable from None
            if offline:
                off = OFFLINE if os.environ.get(OFFLINE) else "HF_HUB_OFFLINE"
                raise UserError(f"{where}: not in the cache, and downloads are switched off ({off})") from None
            raise


def copy_name(address: str) -> str:
    """Return the name of a copy of a model's weights, such as owner--name@main.safetensors."""
    found = ADDRESS.fullmatch(address)
    parts = (found["name"].rstrip("/"), found["revision"]) if found else ()
    return f"{'@'.join(part for part in parts if part)}.safetensors".replace("/", "--")


def keep(address: str, file: str, folder: Path, digest: str | None = None, *, offline: bool = False) -> Path:
    """Copy a repository's file to a folder, where it stays as it is, and return its path.

    Args:
        address: see `is_address`.
        file: name in the repository.
        folder: of the copy, which is called `copy_name`.
        digest: required SHA-256.
        offline: only check a copy that exists.

    Raises:
        UserError: as `download`, or another digest; or the copy that exists has another content than the file has now.
    """
    path = folder / copy_name(address)
    if offline or os.environ.get(OFFLINE):
        if not path.exists():
            raise UserError(f"{path}: not found, and downloads are switched off")
        source = path
    else:
        source = download(address, file)
    found = sha256(source)
    if digest is not None and found != digest:
        raise UserError(f"{address}: its {file} has SHA-256 {found}, expected {digest}")
    if not path.exists():
        with atomic_path(path) as new:
            shutil.copyfile(source, new)
    elif source != path and sha256(path) != found:
        raise UserError(f"{path}: differs from {file} of {address}; delete it, or name the revision that you want")
    return path


def push(name: str, build: Callable[[Path], Any], *, private: bool = False) -> tuple[str, int]:
    """Upload a folder to a repository of models in one commit; return the page's address and the number of files.

    A new repository is made; if the upload fails, it is removed. An existing one must be empty or hold what an earlier
    call uploaded, with an unedited model card. Files of that which are no longer part of the folder are deleted.

    Args:
        name: OWNER/NAME.
        build: writes the folder, a bundle, once everything else has been checked.
        private: make the repository private.

    Raises:
        UserError: no token, no network, a repository that holds something else, or any refusal by the Hub.
    """
    check_name(name)
    if os.environ.get(OFFLINE):
        raise UserError(f"{name}: cannot be pushed: {OFFLINE} switches the network off")
    from huggingface_hub import CommitOperationAdd, CommitOperationCopy, CommitOperationDelete, HfApi

    with _one_line(name):
        token = _token()
        _limit_patience()
        api = HfApi(token=token, library_name="udpm")
        api.whoami()
        known, listed = _existing(api, name, private)
    with TemporaryDirectory(prefix="udpm-push-") as work:
        folder = Path(work) / "bundle"
        build(folder)
        files = {str(path.relative_to(folder)): path for path in sorted(folder.rglob("*")) if path.is_file()}
        held = {file.rfilename for file in known.siblings or []} if known else set()
        if taken := sorted(held & files.keys() - listed):
            raise UserError(f"{name}: has its own {_some(taken)}, which would be replaced; push to another name")
        operations: list[CommitOperationAdd | CommitOperationDelete | CommitOperationCopy] = [
            *(CommitOperationAdd(path_in_repo=file, path_or_fileobj=path) for file, path in files.items()),
            *(CommitOperationDelete(path_in_repo=file) for file in sorted(held & listed - files.keys())),
        ]
        with _one_line(name):
            if known is None:
                api.create_repo(name, private=private or None)
            try:
                parent = None if known is None else known.sha
                api.create_commit(name, operations, commit_message="Push by udpm", parent_commit=parent)
            except BaseException as error:
                if known is None and not _removed_empty(api, name):
                    reason = _reason(error) if isinstance(error, Exception) else "interrupted"
                    raise UserError(f"{name}: {reason}; look at {_endpoint()}/{name}, which was made") from None
                raise
    return f"{_endpoint()}/{name}", len(files)


def _existing(api: HfApi, name: str, private: bool) -> tuple[ModelInfo | None, set[str]]:
    """Return what the Hub knows of a repository, None if there is none, and the files that udpm wrote there.

    Raises:
        UserError: it holds something else, or it is public but should be private.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import RepositoryNotFoundError

    try:
        info = api.model_info(name)
    except RepositoryNotFoundError:
        return None, set()
    if private and not info.private:
        raise UserError(f"{name}: exists and is public; make it private in its settings, or push to another name")
    others = sorted({file.rfilename for file in info.siblings or []} - MADE_BY_HUB)
    if not others:
        return info, set()
    if BUNDLE.record not in others:
        raise UserError(f"{name}: holds other files ({_some(others)}), not a pushed run; push to another name")
    get = partial(hf_hub_download, name, revision=info.sha, token=api.token, etag_timeout=CONNECT_SECONDS)
    record = read_json(Path(get(BUNDLE.record)), "record of a bundle", LARGEST_LIST)
    if not str(record.get("format")).startswith(f"{BUNDLE.format}/"):
        raise UserError(f"{name}: its {BUNDLE.record} is not of a pushed run; push to another name")
    if README in others and not CARD.made(Path(get(README))):
        raise UserError(f"{name}: its {README} was edited there; delete it there, or push to another name")
    listed = record.get("files")
    own = {file for file in listed if isinstance(file, str)} if isinstance(listed, list) else set()
    return info, own | {BUNDLE.record, CONTENTS}


def _removed_empty(api: HfApi, name: str) -> bool:
    """Remove a repository that was made just now, if it is empty; return whether it is gone."""
    try:
        if {file.rfilename for file in api.model_info(name).siblings or []} - MADE_BY_HUB:
            return False
        api.delete_repo(name)
    except Exception:  # Another error is being reported already, and says what is left.
        return False
    return True


def _some(names: list[str]) -> str:
    return ", ".join(names[:SHOWN]) + (", …" if len(names) > SHOWN else "")


def _need(where: str) -> None:
    from importlib.util import find_spec

    if find_spec("huggingface_hub") is None:
        raise UserError(f"{where}: needs the hub extra: pip install 'udpm[hub]'")


def _token() -> str:
    from huggingface_hub import get_token

    token = get_token()
    if token is None:
        raise UserError(f"no token for {_endpoint()}: {LOG_IN}, with a token that may write")
    if not token.isascii() or not token.isprintable() or " " in token:
        raise UserError("the token holds characters that no token has (HF_TOKEN, or the file of `hf auth login`)")
    return token


def _endpoint() -> str:
    """Return the Hub's address, without a password."""
    from huggingface_hub import constants

    parts = urlsplit(constants.ENDPOINT)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def _transport_error() -> Any:
    """Return the base of errors of connections, of the library that huggingface_hub uses: httpx or, since 2, httpx2."""
    from importlib import import_module

    from huggingface_hub import get_session

    return import_module(type(get_session()).__module__.partition(".")[0]).TransportError


def _limit_patience() -> None:
    """Give huggingface_hub's calls time limits, which most have not."""
    from huggingface_hub import get_session, set_client_factory

    session = get_session()
    make, hooks = type(session), session.event_hooks
    limits = (CONNECT_SECONDS, IDLE_SECONDS, IDLE_SECONDS, CONNECT_SECONDS)
    set_client_factory(lambda: make(event_hooks=hooks, follow_redirects=True, timeout=limits))


@contextmanager
def _one_line(where: str) -> Iterator[None]:
    """Report errors of the Hub and of the way to it as one line, and silence the library's own messages.

    Raises:
        UserError: such an error.
    """
    from huggingface_hub.utils import (
        are_progress_bars_disabled,
        disable_progress_bars,
        enable_progress_bars,
        logging,
    )

    level, bars = logging.get_verbosity(), not are_progress_bars_disabled()
    logging.set_verbosity(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            # Some of its bars are drawn anywhere.
            if bars and not sys.stderr.isatty():
                disable_progress_bars()
            yield
    except UserError as error:
        raise UserError(*(line if line.startswith(where) else f"{where}: {line}" for line in error.mistakes)) from None
    # Uploads report what went wrong as ValueError and RuntimeError.
    except (_transport_error(), OSError, ValueError, RuntimeError) as error:
        raise UserError(f"{where}: {_reason(error)}") from None
    finally:
        logging.set_verbosity(level)
        if bars:
            enable_progress_bars()


def _causes(error: BaseException) -> Iterator[BaseException]:
    cause: BaseException | None = error
    for _ in range(DEEPEST):
        if cause is not None:
            yield cause
            cause = cause.__cause__


def _status(error: BaseException) -> int | None:
    """Return the HTTP status of an answer that an error is about."""
    answers = (getattr(cause, "response", None) for cause in _causes(error))
    return next((answer.status_code for answer in answers if answer is not None), None)


def _reason(error: Exception) -> str:
    """Describe an error of a call to the Hub, without the token."""
    from huggingface_hub import get_token
    from huggingface_hub.errors import GatedRepoError, OfflineModeIsEnabled, RevisionNotFoundError

    hub, status, token = _endpoint(), _status(error), get_token()
    if isinstance(error, OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE switches the network off"
    if isinstance(error, RevisionNotFoundError):
        return "no such revision; expected a branch, a tag or a commit of the repository"
    if isinstance(error, GatedRepoError):
        return f"request access at {hub} first, with the account of the token"
    if status == 401 and token is not None and not _is_missing(error):
        return f"{hub} does not accept the token (HF_TOKEN, or the file of `hf auth login`)"
    if status in (401, 404):
        how = "the token's account may not see it" if token else LOG_IN
        return f"no such repository at {hub}, or it is private: {how}"
    if status == 403:
        return f"{hub} does not allow this with the token; it needs the right to write to the owner's repositories"
    if status == 409:
        return f"exists already at {hub}, where the token's account may not see it; push to another name"
    if status == 412:
        return f"changed at {hub} meanwhile; try again"
    if status == 429:
        return f"{hub} takes no more requests now; try again later"
    text = _quoted(error, token)
    if status is not None:
        return f"{hub} answered {status}: {text}"
    if any(isinstance(cause, _transport_error()) for cause in _causes(error)):
        return f"cannot reach {hub}: {text}; check the network, HF_ENDPOINT and proxies"
    return text


def _quoted(error: Exception, token: str | None) -> str:
    """Quote the cause of an error without secrets: the token, passwords in addresses, signatures in their queries."""
    from huggingface_hub.errors import LocalEntryNotFoundError

    # These only say that something else went wrong.
    wrappers = (RuntimeError, LocalEntryNotFoundError)
    cause = next(cause for cause in _causes(error) if not (isinstance(cause, wrappers) and cause.__cause__))
    said = getattr(cause, "server_message", None) or (
        str(cause) if getattr(cause, "response", None) is None else first_line(cause)
    )
    text = " ".join(said.split()) or type(cause).__name__
    text = re.sub(r"//[^/\s@]*@", "//", re.sub(r"\?[^\s'\"]+", "", text))
    return (text.replace(token, "(token)") if token else text)[:LONGEST]


def _is_missing(error: Exception) -> bool:
    from huggingface_hub.errors import RepositoryNotFoundError

    return isinstance(error, RepositoryNotFoundError)
