"""The dashboard of a cluster: reached, let in, and the cluster looked through by a small job."""

from __future__ import annotations

import json
import logging
import os
import shutil
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from raynn import probe
from raynn.cluster import cluster
from raynn.errors import ResourceError
from raynn.readiness import Finding

ANSWER_TIMEOUT_S = 10.0
PROBE_TIMEOUT_S = 600.0  # a runtime environment with PyTorch takes minutes to install
TOKEN_FILE = "~/.ray/auth_token"
ENDED = ("SUCCEEDED", "FAILED", "STOPPED")


def connected(address: str) -> tuple[Any, list[Finding]]:
    """Ray's client for the dashboard at a URL.

    Raises:
        ResourceError: it does not answer, is not Ray's, or does not take the token.
    """
    url = (address if "://" in address else f"http://{address}").rstrip("/")
    if not url.startswith(("http://", "https://")):
        raise ResourceError(
            f"--address {address} is not the URL of a dashboard; give that, for instance http://127.0.0.1:8265"
        )
    version = _version_at(url, {})
    token = "none is asked for"
    if version is None:
        token, source = _token()
        version = _version_at(url, {"Authorization": f"Bearer {token}"})
        if version is None:
            raise ResourceError(
                f"{url} does not accept the token of {source}; put the cluster's own there: "
                "`ray get-auth-token` on its head prints it"
            )
        token = f"that of {source} is accepted"
    from ray.job_submission import JobSubmissionClient

    for talker in ("dashboard.modules.job.sdk", "dashboard.modules.dashboard_sdk", "_private.runtime_env.packaging"):
        logging.getLogger(f"ray.{talker}").setLevel(logging.WARNING)
    with requests_to(url), _without("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"):
        client = JobSubmissionClient(url)
    return client, [Finding("address", "ok", f"{url}, Ray {version}"), Finding("token", "ok", token)]


def _version_at(url: str, headers: Mapping[str, str]) -> str | None:
    """Ray's version at a dashboard; None where it wants another token, or one at all."""
    request = urllib.request.Request(f"{url}/api/version", headers=dict(headers))
    try:
        with urllib.request.urlopen(request, timeout=ANSWER_TIMEOUT_S) as answer:
            return str(json.load(answer)["ray_version"])
    except urllib.error.HTTPError as error:
        if error.code in (401, 403):
            return None
        reason = f"status {error.code}"
    except (ValueError, KeyError, TypeError):
        reason = "no version"
    except OSError as error:
        raise ResourceError(
            f"{url} does not answer ({getattr(error, 'reason', error)}); is the cluster up, and the tunnel to its "
            "dashboard open (`ray dashboard CLUSTER.yaml`, `kubectl port-forward`)?"
        ) from None
    raise ResourceError(f"{url} answers, but not as Ray's dashboard does ({reason}); its port is 8265 by default")


def _token() -> tuple[str, str]:
    """The token that Ray's client would send, and where it stands.

    Raises:
        ResourceError: Ray's client would send none.
    """
    where = f"RAY_AUTH_TOKEN, in the file that RAY_AUTH_TOKEN_PATH names, or in {TOKEN_FILE}"
    if os.environ.get("RAY_AUTH_MODE") != "token":
        raise ResourceError(
            "the cluster asks for a token, and Ray sends none unless told to: export RAY_AUTH_MODE=token; the token is "
            f"taken from {where}"
        )
    if token := os.environ.get("RAY_AUTH_TOKEN"):
        return token, "RAY_AUTH_TOKEN"
    file = os.environ.get("RAY_AUTH_TOKEN_PATH") or TOKEN_FILE
    try:
        token = Path(file).expanduser().read_text().strip()
    except OSError as error:
        raise ResourceError(
            f"the cluster asks for a token, and {file} cannot be read ({error.strerror}); put the cluster's in "
            f"{where}: `ray get-auth-token` on its head prints it"
        ) from None
    return token, file


def look_at(address: str, asked: Mapping[str, Any]) -> dict[str, Any]:
    """What there is at an address: a dashboard's URL, or that of Ray itself on one of the cluster's nodes.

    Raises:
        ResourceError: nothing there, or not for us.
    """
    if address.startswith(("http://", "https://")):
        return look_through(connected(address)[0], asked, {})
    os.environ["RAY_ADDRESS"] = address
    with cluster(0):
        return probe.look(asked)


def look_through(client: Any, asked: Mapping[str, Any], runtime_env: Mapping[str, Any]) -> dict[str, Any]:
    """What a small job on the cluster sees, in the job's own environment; it leaves nothing.

    Raises:
        ResourceError: it failed, or did not end.
    """
    environment = {key: value for key, value in runtime_env.items() if key not in ("py_modules", "excludes")}
    with tempfile.TemporaryDirectory() as folder, requests_to(client.get_address()):
        shutil.copy(probe.__file__, folder)
        (Path(folder) / probe.ASKED).write_text(json.dumps(asked))
        job_id = client.submit_job(entrypoint="python probe.py", runtime_env=environment | {"working_dir": folder})
        started = time.monotonic()
        while (status := client.get_job_status(job_id)).value not in ENDED:
            if time.monotonic() - started > PROBE_TIMEOUT_S:
                client.stop_job(job_id)
                raise ResourceError(
                    f"a probe of the cluster, job {job_id}, did not end in {PROBE_TIMEOUT_S:g} s; is it busy?"
                )
            time.sleep(0.3)
        log, message = client.get_job_logs(job_id), client.get_job_info(job_id).message
        client.delete_job(job_id)
    for line in log.splitlines():
        if line.startswith(probe.MARK):
            answer: dict[str, Any] = json.loads(line.removeprefix(probe.MARK))
            return answer
    last = (log.strip() or str(message)).splitlines()[-1]
    raise ResourceError(
        f"a probe of the cluster failed ({status.value}: {last}); `python -c 'import ray'` has to work there"
    )


@contextmanager
def _without(*names: str) -> Iterator[None]:
    """The environment without some variables: they would overrule an address that is given."""
    kept = {name: os.environ.pop(name) for name in names if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(kept)


@contextmanager
def requests_to(address: str) -> Iterator[None]:
    """What the cluster refuses, as an error of ours."""
    from ray.exceptions import RayError

    try:
        yield
    except (OSError, RuntimeError, RayError) as error:  # requests' are OSErrors
        raise ResourceError(
            f"{address} refused: {str(error).strip()[:500]}; `ray job list` says what runs there"
        ) from error
