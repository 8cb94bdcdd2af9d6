"""Bundles on the Hugging Face Hub, by its own client: hf://OWNER/NAME[@REVISION][/FOLDER].

The client's rules hold: its cache (HF_HOME, HF_HUB_CACHE), offline mode (HF_HUB_OFFLINE=1), tokens (`hf auth login`, HF_TOKEN), other hubs
(HF_ENDPOINT). A revision is a branch, a tag or a commit; one with a slash is written with %2F, or is a reference such as refs/pr/3.

Of a repository nothing is downloaded but the files that a bundle is read from, JSON and safetensors, which are checked as local ones are
(gentok/bundle/model.py): whatever else lies there is neither fetched nor run. A bundle is uploaded as one commit, so that a repository
holds the whole of the old one or of the new one.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

from gentok import __version__
from gentok.errors import ConfigError

__all__ = ["HubAddress", "download", "upload"]

_FILES = ("bundle.json", "tokenizer/model.safetensors", "generator/model.safetensors")
_NAME = r"[\w-][\w.-]*/[\w-][\w.-]*"
_ADDRESS = re.compile(
    rf"(?:models/)?(?P<repo>{_NAME})(?:@(?P<revision>refs/[^/@]+/[^/@]+|[^/@]+))?(?:/(?P<folder>[\w-][\w./-]*?))?/?", re.ASCII
)
_PREFIX = re.compile(r"hf:/{1,2}")  # a Path keeps one of two slashes


@dataclass(frozen=True)
class HubAddress:
    """Where a bundle lies on the hub.

    Attributes:
        repo: "OWNER/NAME" of a model repository.
        revision: a branch, a tag or a commit; None: the main branch.
        folder: inside the repository; "" for its root.
    """

    repo: str
    revision: str | None = None
    folder: str = ""

    @staticmethod
    def is_one(place: str | os.PathLike[str]) -> bool:
        """Whether `place` is an address on the hub and no path."""
        return _PREFIX.match(str(place)) is not None

    @staticmethod
    def is_name(place: str) -> bool:
        """Whether `place` may be the name of a repository, OWNER/NAME."""
        return re.fullmatch(_NAME, place, re.ASCII) is not None

    @classmethod
    def parse(cls, text: str) -> HubAddress:
        """From "hf://OWNER/NAME[@REVISION][/FOLDER]", or without hf://. Raises ConfigError where it is something else."""
        found = _ADDRESS.fullmatch(_PREFIX.sub("", text, count=1))
        folder = (found["folder"] or "") if found else ""
        if not found or (folder and {"", ".", ".."}.intersection(folder.split("/"))):
            expected = "hf://OWNER/NAME, hf://OWNER/NAME@REVISION or hf://OWNER/NAME@REVISION/FOLDER"
            raise ConfigError(f"{text} is no address of a model on the hub; expected {expected}")
        return cls(found["repo"], unquote(found["revision"]) if found["revision"] else None, folder)

    def __str__(self) -> str:
        revision = self.revision or ""
        written = revision if revision.startswith("refs/") else quote(revision, safe="")
        return f"hf://{self.repo}" + (f"@{written}" if revision else "") + (f"/{self.folder}" if self.folder else "")


def download(address: HubAddress) -> Path:
    """The folder in the client's cache that holds the bundle at `address`, downloaded as far as it is not there.

    Args:
        address: of the bundle.

    Returns:
        The folder, with bundle.json.

    Raises:
        ImportError: huggingface_hub is not installed.
        FileNotFoundError: there is no such repository, revision or bundle, or it is not in the cache of a machine that is offline.
        PermissionError: the hub refuses.
        OSError: the hub cannot be reached.
        ConfigError: it is no name of a repository.
    """
    hub, inside = _client(), f"{address.folder}/" if address.folder else ""
    with _explained(address, "read"):
        root = hub.snapshot_download(
            address.repo, revision=address.revision, allow_patterns=[inside + name for name in _FILES], library_name="gentok",
            library_version=__version__,
        )  # fmt: skip
    folder = Path(root) / address.folder
    if not (folder / "bundle.json").is_file():
        raise FileNotFoundError(f"{address} has no bundle.json{_elsewhere(hub, address)}")
    return folder


def upload(folder: Path, address: HubAddress, *, private: bool | None, message: str, card: bool) -> str:
    """Uploads a bundle folder as one commit; the repository and the branch are made where they are not there.

    Args:
        folder: what is uploaded, all of it.
        address: where it goes.
        private: whether a repository that is made now is private; None: what the account's settings say.
        message: of the commit.
        card: README.md is uploaded too, in the place of one that is there.

    Returns:
        The address of the commit.

    Raises:
        ImportError: huggingface_hub is not installed.
        PermissionError: nobody is logged in, or may not write there.
        OSError: the hub cannot be reached, or refuses what was sent.
        ConfigError: it is no name of a repository.
    """
    hub = _client()
    api = hub.HfApi(library_name="gentok", library_version=__version__)
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and (card or path.name != "README.md")]
    inside = Path(address.folder)
    additions = [hub.CommitOperationAdd((inside / path.relative_to(folder)).as_posix(), path) for path in files]
    with _explained(address, "write"):
        api.create_repo(address.repo, private=private, exist_ok=True)
        if address.revision not in (None, "main"):
            api.create_branch(address.repo, branch=address.revision, exist_ok=True)
        commit = api.create_commit(address.repo, additions, commit_message=message, revision=address.revision)
    return str(commit.commit_url)


def _client() -> Any:
    try:
        import huggingface_hub
    except ImportError as error:
        raise ImportError("models on the Hugging Face Hub need the package huggingface_hub: pip install 'gentok[hub]'") from error
    return huggingface_hub


@contextmanager
def _explained(address: HubAddress, action: str) -> Iterator[None]:
    """What the client raises, as one line. action: "read" or "write"."""
    from huggingface_hub import constants, errors

    repo, endpoint, offline = address.repo, constants.ENDPOINT, constants.HF_HUB_OFFLINE
    log_in = "log in with `hf auth login`, or set HF_TOKEN"
    transport: Any = errors.HfHubHTTPError.__bases__[0]  # of the package that the client makes its requests with
    try:
        yield
    except errors.GatedRepoError as error:
        raise PermissionError(f"{repo} asks for its terms to be accepted first: do so at {endpoint}/{repo}, then {log_in}") from error
    except errors.RepositoryNotFoundError as error:
        there = "there is no repository" if action == "read" else "you may not write to the repository"
        raise FileNotFoundError(f"{there} {repo} at {endpoint}, or it is private: check the name, or {log_in}") from error
    except errors.RevisionNotFoundError as error:
        there_are = f"expected a branch, a tag or a commit of {endpoint}/{repo}"
        raise FileNotFoundError(f"{repo} has no revision {address.revision}: {there_are}") from error
    except errors.HFValidationError as error:
        raise ConfigError(f"{repo} is no name of a repository on the hub: {error}") from error
    except errors.HfHubHTTPError as error:
        status = error.response.status_code
        if status in (401, 403):
            raise PermissionError(f"{endpoint} does not let you {action} {repo} (status {status}): {log_in}") from error
        raise OSError(f"{endpoint} refused to {action} {repo}: {str(error.server_message or error)[:300]}") from error
    except (OSError, transport) as error:
        if offline:
            cached = f"{address} is not in the cache ({constants.HF_HUB_CACHE}), and" if action == "read" else f"{repo} cannot be written:"
            raise FileNotFoundError(f"{cached} the environment says to stay offline: unset HF_HUB_OFFLINE") from error
        if isinstance(error, (errors.LocalEntryNotFoundError, transport, ConnectionError, TimeoutError)):
            cached = f", and {address} is not in the cache ({constants.HF_HUB_CACHE})" if action == "read" else ""
            raise ConnectionError(f"{endpoint} cannot be reached{cached}: check the connection") from error
        raise


def _elsewhere(hub: Any, address: HubAddress) -> str:
    """The end of a message about a repository without a bundle: the folders of it that hold one."""
    try:
        names = hub.HfApi().list_repo_files(address.repo, revision=address.revision)
    except Exception:  # without a connection the message does without
        names = []
    found = [HubAddress(address.repo, address.revision, str(Path(name).parent)) for name in sorted(names) if name.endswith("/bundle.json")]
    return f"; bundles inside it: {', '.join(map(str, found[:8]))}" if found else ": it holds no model of gentok"
