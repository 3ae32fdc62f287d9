"""clusters/: every file is what its reader expects, keeps strangers out, and names nobody."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

ROOT = Path(__file__).parents[1]
CLUSTERS = ROOT / "clusters"
LAUNCHERS = ("aws.yaml", "gcp.yaml", "ssh.yaml")
SCRIPTS = sorted(path.name for path in CLUSTERS.glob("*.sh"))
# What fill.sh puts into files, as the files' own headers say it.
ENVIRONMENT = {
    "GOOGLE_CLOUD_PROJECT": "a-project",
    "RAYNN_HEAD": "10.0.0.1",
    "RAYNN_WORKERS": "10.0.0.2, 10.0.0.3",
    "RAYNN_SSH_USER": "someone",
    "RAYNN_SSH_KEY": "~/.ssh/id_ed25519",
    "RAYNN_SHARED": "/shared",
    "RAYNN_IMAGE": "registry.example.com/raynn:1",
    "RAYNN_JOB": "jobs/digits_cnn.yaml",
}


def fill(name: str, **environment: str) -> subprocess.CompletedProcess[str]:
    known = {"PATH": os.environ["PATH"], **environment}
    command = ["bash", str(CLUSTERS / "fill.sh"), str(CLUSTERS / name)]
    return subprocess.run(command, env=known, capture_output=True, text=True, check=False)


def filled(name: str) -> Any:
    done = fill(name, **ENVIRONMENT)
    assert done.returncode == 0, done.stderr
    return yaml.safe_load(done.stdout)


def test_an_unset_name_is_named_and_what_needs_it() -> None:
    done = fill("gcp.yaml")
    assert done.returncode == 2
    assert "gcp.yaml needs GOOGLE_CLOUD_PROJECT in the environment; export GOOGLE_CLOUD_PROJECT=..." in done.stderr


def test_only_names_in_braces_are_filled_in() -> None:
    text = fill("gcp.yaml", **ENVIRONMENT, RAY_HEAD_IP="1.2.3.4").stdout
    assert "project_id: a-project\n" in text
    assert "--address=$RAY_HEAD_IP:6379" in text, "the launcher fills this in, on the node"


@pytest.mark.parametrize("name", LAUNCHERS)
def test_ray_accepts_what_the_launcher_reads(name: str) -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = prepare_config(filled(name))
    validate_config(config)
    if name == "ssh.yaml":
        assert config["provider"]["worker_ips"] == ["10.0.0.2", "10.0.0.3"]
        assert config["max_workers"] == 2


@pytest.mark.parametrize("name", LAUNCHERS)
def test_the_launcher_copies_files_that_are_there(name: str) -> None:
    mounts = filled(name)["file_mounts"]
    assert mounts.pop("~/.ray/auth_token") == "~/.ray/auth_token"
    assert mounts
    for remote, local in mounts.items():
        assert (ROOT / local).exists(), local
        assert remote == f"~/raynn/{local}"


@pytest.mark.parametrize("name", LAUNCHERS)
def test_the_dashboard_is_for_the_head_alone_and_everything_asks_for_a_token(name: str) -> None:
    config = filled(name)
    heads, workers = (
        [line for line in config[key] if "ray start" in line]
        for key in ("head_start_ray_commands", "worker_start_ray_commands")
    )
    assert len(heads) == len(workers) == 1
    assert "--dashboard-host=127.0.0.1" in heads[0]
    assert all("export RAY_AUTH_MODE=token;" in line for line in heads + workers)


@pytest.mark.parametrize("name", ["aws.yaml", "gcp.yaml", "ssh.yaml", "slurm.sh", "kubernetes/raycluster.yaml"])
def test_every_head_gives_up_a_silent_node_soon(name: str) -> None:
    text = (CLUSTERS / name).read_text()
    found = {key: int(value) for key, value in re.findall(r'RAY_health_check_(\w+?)(?:=|, value: ")(\d+)', text)}
    assert found["failure_threshold"] * (found["period_ms"] + found["timeout_ms"]) == 12_000


@pytest.mark.parametrize("name", ["aws.yaml", "gcp.yaml"])
def test_clouds_scale_have_both_kinds_of_nodes_and_end_idle_ones(name: str) -> None:
    config = filled(name)
    types = config["available_node_types"]
    assert config["idle_timeout_minutes"] <= 5
    assert types[config["head_node_type"]]["resources"] == {"CPU": 0}
    assert sum(kind.get("max_workers", 0) for kind in types.values()) >= config["max_workers"]
    spot = {key for key, kind in types.items() if "SPOT" in json.dumps(kind["node_config"]).upper()}
    assert spot == {"cpu_spot", "gpu_spot"}
    assert {key for key, kind in types.items() if kind["resources"].get("GPU")} == {"gpu_spot", "gpu_on_demand"}
    assert not [key for key, kind in types.items() if kind["resources"].get("GPU") and kind["min_workers"]]


def test_the_head_s_role_starts_and_ends_the_cluster_s_own_nodes_only() -> None:
    config, policy = filled("aws.yaml"), json.loads((CLUSTERS / "aws-policy.json").read_text())
    types, region = config["available_node_types"], config["provider"]["region"]
    by_name = {statement["Sid"]: statement for statement in policy["Statement"]}
    start = by_name["StartNodesOfThisClusterOfTheseTypes"]["Condition"]["StringEquals"]
    workers = {kind["node_config"]["InstanceType"] for key, kind in types.items() if key != "head"}
    assert set(start["ec2:InstanceType"]) == workers
    assert start["aws:RequestTag/ray-cluster-name"] == config["cluster_name"]
    end = by_name["NameAndEndNodesOfThisClusterOnly"]
    assert end["Condition"]["StringEquals"] == {"ec2:ResourceTag/ray-cluster-name": config["cluster_name"]}
    for statement in policy["Statement"]:
        actions = statement["Action"] if isinstance(statement["Action"], list) else [statement["Action"]]
        assert not [action for action in actions if "*" in action or action.startswith("iam:")]
        assert region in json.dumps(statement)
        if any(not action.startswith("ec2:Describe") for action in actions):
            assert statement["Resource"] != "*"
    assert [key for key, kind in types.items() if "IamInstanceProfile" in kind["node_config"]] == ["head"]


def test_aws_admits_ssh_from_one_address_and_nothing_else() -> None:
    assert filled("aws.yaml")["provider"]["security_group"] == {"GroupName": "raynn"}
    rules = re.findall(r"authorize-security-group-ingress(?:[^\n]|\\\n)*", (CLUSTERS / "aws-setup.sh").read_text())
    assert len(rules) == 2
    assert '--source-group "$group"' in rules[0]
    assert '--port 22 --cidr "$mine/32"' in rules[1]


def kuberay(kind: str) -> dict[str, Any]:
    """The schema of v1 of a resource of KubeRay's, closed: a key that it does not name is an error, as for kubectl."""
    beside = (ROOT.parent / "shared", ROOT.parents[1] / "shared")
    folders = [os.environ.get("RAYNN_KUBERAY"), *(folder / "kuberay" for folder in beside)]
    for folder in folders:
        path = Path(folder or "") / f"ray.io_{kind}.yaml"
        if folder and path.is_file():
            definition = yaml.load(path.read_text(), getattr(yaml, "CSafeLoader", yaml.SafeLoader))
            versions = definition["spec"]["versions"]
            schema = next(v["schema"]["openAPIV3Schema"] for v in versions if v["name"] == "v1")
            return _closed(schema)
    pytest.skip(f"no ray.io_{kind}.yaml of KubeRay 1.7: RAYNN_KUBERAY names the folder with its definitions")


def _closed(schema: Any) -> Any:
    if isinstance(schema, list):
        return [_closed(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {key: _closed(value) for key, value in schema.items()}
    if isinstance(schema.get("properties"), dict) and schema.get("type") == "object":
        closed.setdefault("additionalProperties", bool(schema.get("x-kubernetes-preserve-unknown-fields")))
    return closed


@pytest.mark.parametrize(("name", "kind"), [("raycluster", "rayclusters"), ("rayjob", "rayjobs")])
def test_kuberay_accepts_its_resources(name: str, kind: str) -> None:
    schema, resource = kuberay(kind), filled(f"kubernetes/{name}.yaml")
    jsonschema.validate(resource, schema)
    cluster = resource["spec"].get("rayClusterSpec", resource["spec"])
    cluster["workerGroupSpecs"][0]["maxReplica"] = 3
    with pytest.raises(jsonschema.ValidationError, match="'maxReplica' was unexpected"):
        jsonschema.validate(resource, schema)


@pytest.mark.parametrize("name", ["raycluster", "rayjob"])
def test_pods_are_confined_and_share_a_folder(name: str) -> None:
    resource = filled(f"kubernetes/{name}.yaml")
    cluster = resource["spec"].get("rayClusterSpec", resource["spec"])
    assert cluster["authOptions"] == {"mode": "token"}
    assert cluster["headGroupSpec"]["serviceType"] == "ClusterIP"
    assert cluster["enableInTreeAutoscaling"] is True
    gpus = []
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        pod = group["template"]["spec"]
        (container,) = pod["containers"]
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert container["securityContext"]["allowPrivilegeEscalation"] is False
        assert {"name": "shared", "mountPath": "/shared"} in container["volumeMounts"]
        assert container["resources"]["limits"] == container["resources"]["requests"]
        plain = [variable["name"] for variable in container["env"] if "value" in variable]
        assert all(name.startswith("RAY_health_check_") for name in plain), "secrets come from a Secret"
        gpus.append(container["resources"]["limits"].get("nvidia.com/gpu"))
    assert gpus == [None, None, "1"]


def test_a_rayjob_s_cluster_is_raycluster_s_cluster() -> None:
    assert filled("kubernetes/rayjob.yaml")["spec"]["rayClusterSpec"] == filled("kubernetes/raycluster.yaml")["spec"]


def test_the_namespace_admits_its_own_pods_and_the_operator() -> None:
    resources = {r["kind"]: r for r in yaml.safe_load_all((CLUSTERS / "kubernetes/namespace.yaml").read_text())}
    assert set(resources) == {"Namespace", "PersistentVolumeClaim", "NetworkPolicy"}
    assert resources["PersistentVolumeClaim"]["spec"]["accessModes"] == ["ReadWriteMany"]
    policy = resources["NetworkPolicy"]["spec"]
    assert policy["podSelector"] == {}
    ((own, operator),) = [rule["from"] for rule in policy["ingress"]]
    assert own == {"podSelector": {}}
    assert operator["podSelector"] == {"matchLabels": {"app.kubernetes.io/name": "kuberay-operator"}}


@pytest.mark.parametrize("name", SCRIPTS)
def test_shell_reads_the_scripts(name: str) -> None:
    subprocess.run(["bash", "-n", str(CLUSTERS / name)], check=True)
    assert os.access(CLUSTERS / name, os.X_OK)
    shellcheck = shutil.which("shellcheck", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if shellcheck is None:
        pytest.skip("no shellcheck")
    done = subprocess.run([shellcheck, str(CLUSTERS / name)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    "path",
    [*map(CLUSTERS.joinpath, ("aws.yaml", "gcp.yaml", "ssh.yaml", "slurm.sh", "local.sh"))]
    + [CLUSTERS / "kubernetes" / name for name in ("namespace.yaml", "raycluster.yaml", "rayjob.yaml")],
    ids=lambda path: path.name,
)
def test_a_file_says_how_it_comes_up_and_down_and_what_it_costs(path: Path) -> None:
    header = "\n".join(line for line in path.read_text().splitlines()[:25] if line.startswith("#"))
    for word in (r"\bup\b", r"\bdown\b", r"^# Cost"):
        assert re.search(word, header, re.MULTILINE), f"{word} in the header of {path.name}"


def test_nothing_personal_and_no_port_of_ray_s_workers() -> None:
    for path in (path for path in CLUSTERS.rglob("*") if path.is_file() and path.name != "mine.yaml"):
        text = path.read_text()
        for what, pattern in {
            "an e-mail address": r"[\w.]+@[\w-]+\.\w+",
            "an account": r"\b\d{12}\b",
            "an image or group of one account or region": r"\b(ami|sg|subnet|vpc)-[0-9a-f]{8,}",
            "someone's home": r"/(home|Users)/(?!ray/)\w+",
            "a key": r"AKIA|BEGIN [A-Z ]*PRIVATE KEY",
            "everyone": r"0\.0\.0\.0/0|::/0",
        }.items():
            assert not re.search(pattern, text), f"{what} in {path.name}"
        for port in map(int, re.findall(r"port[= :{-]+(\d{4,5})\b", text)):
            assert not 10002 <= port <= 19999, f"port {port} in {path.name}"


def test_the_page_names_every_file() -> None:
    page = (ROOT / "docs/clusters.md").read_text()
    files = [path for path in CLUSTERS.rglob("*") if path.is_file() and path.name not in ("mine.yaml",)]
    missing = [path.name for path in files if path.name not in page]
    assert not missing


def test_a_submitted_clone_is_small(tmp_path: Path) -> None:
    """Packed by Ray's own function, the one that `ray job submit --working-dir .` calls."""
    from ray._private.runtime_env.packaging import create_package

    clone = tmp_path / "clone"
    ours = ("raynn", "jobs", "clusters", "tests", "docs", "benchmarks")
    for name in ours:
        shutil.copytree(ROOT / name, clone / name, ignore=shutil.ignore_patterns("__pycache__", "mine.yaml"))
    for name in (".gitignore", ".rayignore", "pyproject.toml", "constraints.txt", "README.md", "LICENSE", "Makefile"):
        shutil.copy(ROOT / name, clone / name)
    heavy = (
        ".git/objects/pack/pack-1.pack", ".venv/lib/python3.11/site-packages/torch/libtorch.so", "venv/bin/python",
        "data/train.parquet", "runs/digits-cnn/model/weights.safetensors", "wandb/run-1/run-1.wandb",
        "raynn/__pycache__/cli.cpython-311.pyc", "table.csv", "jobs/rows.parquet", ".mypy_cache/3.11/x.json",
    )  # fmt: skip
    for name in heavy:
        (clone / name).parent.mkdir(parents=True, exist_ok=True)
        (clone / name).write_bytes(os.urandom(1 << 20))
    (clone / ".env").write_text("WANDB_API_KEY=secret\n")

    package = tmp_path / "package.zip"
    create_package(str(clone), package, include_gitignore=True, logger=None)
    with zipfile.ZipFile(package) as archive:
        names = set(archive.namelist())
    assert not names & {*heavy, ".env"}
    assert not [name for name in names if name.split("/")[0] in {".git", ".venv", "data", "runs", "wandb", "tests"}]
    needed = {str(p.relative_to(ROOT)) for name in ("raynn", "jobs") for p in (ROOT / name).rglob("*.[py][ya]*")}
    assert {name for name in needed if "__pycache__" not in name} <= names
    assert package.stat().st_size < 4 << 20, "Ray stores, it does not compress"
