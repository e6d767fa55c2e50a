"""The files of infra/cluster: they parse, fit Ray's own schema, name versions and recipes that exist."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import jsonschema
import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
CLUSTER = ROOT / "infra/cluster"
MANIFESTS = ("kuberay-cluster.yaml", "kuberay-job.yaml")


def ray_version() -> str:
    found = re.search(r"^ray==(.+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert found is not None
    return found[1]


@pytest.mark.parametrize("file", [path for path in CLUSTER.iterdir() if path.is_file()], ids=lambda path: path.name)
def test_a_file_says_how_it_is_used_and_names_only_what_exists(file):
    text = file.read_text(encoding="utf-8")
    assert f"infra/cluster/{file.name}" in text
    for named in re.findall(r"(?:infra|pipeline|docs)/[\w./-]+\.\w+", text):
        assert (ROOT / named).exists(), named


def test_the_cloud_cluster_fits_rays_schema():
    autoscaler = pytest.importorskip("ray.autoscaler")
    schema = json.loads((Path(autoscaler.__file__).parent / "ray-schema.json").read_text())
    jsonschema.validate(yaml.safe_load((CLUSTER / "ray-aws.yaml").read_text()), schema)


@pytest.mark.parametrize("name", MANIFESTS)
def test_a_manifest_asks_for_the_ray_that_the_image_holds(name):
    spec = yaml.safe_load((CLUSTER / name).read_text())["spec"]
    cluster = spec.get("rayClusterSpec", spec)
    assert cluster["rayVersion"] == ray_version()
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    for group in cluster["workerGroupSpecs"]:
        assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]


def test_the_slurm_script_is_one_that_bash_can_read():
    subprocess.run(["bash", "-n", CLUSTER / "slurm.sh"], check=True)
