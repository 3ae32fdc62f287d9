"""Azure's storage by the keys of its own tools. Without one in the environment Azure's default credentials count.

The variables are those of `az storage` (learn.microsoft.com, "Authorize access to blob data with Azure CLI"), the
addresses Hadoop's and pyarrow's: `abfs://container@account.dfs.core.windows.net/path`,
`abfs://account.blob.core.windows.net/container/path`, and `abfs://container/path` where the account is in the
environment.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any
from urllib.parse import unquote, urlsplit

SCHEMES = ("abfs", "abfss")


def open_azure(url: str, given: Mapping[str, str] = os.environ) -> tuple[Any, str] | None:
    """The file system and the path in it, "container/path".

    Args:
        url: an address of one of the forms above.
        given: AZURE_STORAGE_CONNECTION_STRING, or AZURE_STORAGE_ACCOUNT with AZURE_STORAGE_KEY or
            AZURE_STORAGE_SAS_TOKEN.

    Returns:
        None where it is no address in Azure, or neither a key nor an account is given: pyarrow knows the rest.

    Raises:
        ImportError: this pyarrow was built without Azure.
        ValueError: the address names another account than the environment does, or has a query.
    """
    parts = urlsplit(url)
    if parts.scheme not in SCHEMES:
        return None
    text = given.get("AZURE_STORAGE_CONNECTION_STRING", "")
    connection = dict(part.split("=", 1) for part in text.split(";") if "=" in part)
    account = connection.get("AccountName") or given.get("AZURE_STORAGE_ACCOUNT", "")
    key = connection.get("AccountKey") or given.get("AZURE_STORAGE_KEY")
    token = connection.get("SharedAccessSignature") or given.get("AZURE_STORAGE_SAS_TOKEN")
    named, path = _account_and_path(parts.username, parts.hostname or "", unquote(parts.path))
    if not (key or token or (account and not named)):
        return None
    if parts.query:
        raise ValueError("what stands behind the question mark belongs into AZURE_STORAGE_CONNECTION_STRING")
    if named and account and named != account:
        raise ValueError(f"the address is of the account {named!r}, the environment has {account!r}'s key")
    from pyarrow.fs import AzureFileSystem  # some builds have none

    access = {"account_key": key} if key else {"sas_token": token.lstrip("?")} if token else {}
    return AzureFileSystem(named or account, **access, **_endpoints(connection)), path


def _account_and_path(container: str | None, host: str, path: str) -> tuple[str, str]:
    """Account, "" where the address names none, and "container/path"."""
    path = path.strip("/")
    if container:  # container@account.dfs.core.windows.net
        return host.partition(".")[0], f"{container}/{path}".rstrip("/")
    if "." in host:  # account.blob.core.windows.net
        return host.partition(".")[0], path
    return "", f"{host}/{path}".rstrip("/")


def _endpoints(connection: Mapping[str, str]) -> dict[str, str]:
    """Where the services are, if not at Azure's own: those of another cloud, or of the emulator Azurite."""
    found: dict[str, str] = {}
    for service in ("blob", "dfs"):
        endpoint = connection.get(f"{service.capitalize()}Endpoint") or connection.get("BlobEndpoint", "")
        scheme, _, rest = endpoint.partition("://")
        host, _, account = rest.strip("/").partition("/")
        if account:  # http://127.0.0.1:10000/account
            found |= {f"{service}_storage_authority": host, f"{service}_storage_scheme": scheme}
        elif suffix := host.partition(".")[2].partition(".")[2] or connection.get("EndpointSuffix"):
            found[f"{service}_storage_authority"] = f".{service}.{suffix}"  # account.blob.core.windows.net
    return found
