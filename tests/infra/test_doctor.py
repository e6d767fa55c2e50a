"""The doctor says ok where all is well, and where it is not what is wrong and the mend; nothing makes it faint."""

from __future__ import annotations

import json
import socket
import sys
import threading
import types
from collections.abc import Iterator
from pathlib import Path

import pytest

from infra import doctor
from infra.__main__ import run_main
from infra.doctor import (
    Wanted,
    check_disk,
    check_libraries,
    check_names,
    check_open_files,
    check_python,
    check_rooms,
    examine,
)
from infra.executors import RayExecutor

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def name_server() -> Iterator[str]:
    """A name server on loopback: known names have an address, all others do not exist."""
    pytest.importorskip("dns", reason="dnspython is not installed: make setup")
    import dns.message
    import dns.rcode
    import dns.rrset

    server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    server.bind(("127.0.0.1", 0))
    server.settimeout(0.1)
    stop = threading.Event()

    def serve() -> None:
        while not stop.is_set():
            try:
                data, asker = server.recvfrom(4096)
            except TimeoutError:
                continue
            answer = dns.message.make_response(dns.message.from_wire(data))
            name = answer.question[0].name
            if str(name).startswith("known"):
                answer.answer.append(dns.rrset.from_text(name, 60, "IN", "A", "192.0.2.1"))
            else:
                answer.set_rcode(dns.rcode.NXDOMAIN)
            server.sendto(answer.to_wire(), asker)

    thread = threading.Thread(target=serve)
    thread.start()
    yield f"127.0.0.1:{server.getsockname()[1]}"
    stop.set()
    thread.join()
    server.close()


def test_this_checkout_is_fit() -> None:
    checks = list(examine(Wanted(ray=False)))
    assert [check.name for check in checks] == [
        "python", "libraries", "rooms", "open files", "/dev/shm", "disk", "temporary", "names",
    ]  # fmt: skip
    assert [str(check) for check in checks if check.state == "problem"] == []
    assert all(check.mend for check in checks if check.state != "ok")


PYTHONS = [((3, 10, 1), "problem"), ((3, 11, 0), "ok"), ((3, 12, 9), "ok"), ((3, 13, 0), "problem")]


@pytest.mark.parametrize(("version", "state"), PYTHONS)
def test_only_pythons_that_the_libraries_agree_on_are_fit(version: tuple[int, ...], state: str) -> None:
    assert check_python(version).state == state


def test_missing_and_other_versions_of_libraries_are_told(tmp_path: Path) -> None:
    pyproject = tmp_path / "pyproject.toml"
    pyproject.write_text('[project]\ndependencies = ["no-such-thing", "pyarrow<1", "click"]')
    check = check_libraries(pyproject)
    assert check.state == "problem"
    assert "not installed: no-such-thing" in check.text
    assert "pyarrow" in check.text
    assert "click" not in check.text
    assert "make setup" in check.mend


def test_a_room_from_elsewhere_is_a_problem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert check_rooms().state == "ok"
    assert "json from" in check_rooms(["infra", "json"]).text
    assert "no_such_room from nowhere" in check_rooms(["no_such_room"]).text
    assert check_rooms(checkout=tmp_path).state == "problem"


def test_a_training_from_site_packages_is_a_problem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # What open_clip wheels before 2.26 do, here with the virtual environment inside the checkout.
    other = tmp_path / ".venv" / "site-packages" / "training"
    other.mkdir(parents=True)
    (other / "__init__.py").touch()
    monkeypatch.syspath_prepend(str(other.parent))
    monkeypatch.delitem(sys.modules, "training", raising=False)
    check = check_rooms(checkout=tmp_path)
    assert f"training from {other}" in check.text
    assert check_rooms(["training"], checkout=tmp_path).state == "problem"


def test_too_few_open_files_are_a_warning_with_a_figure(monkeypatch: pytest.MonkeyPatch) -> None:
    assert check_open_files(1).state == "ok"
    fake = types.SimpleNamespace(getrlimit=lambda kind: (256, 4096), RLIMIT_NOFILE=7, RLIM_INFINITY=-1)
    monkeypatch.setattr(doctor, "resource", fake)
    assert check_open_files(128).state == "warning"
    assert "ulimit -n" in check_open_files(128).mend
    fake.getrlimit = lambda kind: (-1, -1)
    assert check_open_files(10**6).state == "ok"


@pytest.mark.parametrize(("free", "state"), [(10**8, "problem"), (2 * 10**9, "warning"), (10**12, "ok")])
def test_the_disk_is_measured_where_the_dataset_will_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free: int, state: str
) -> None:
    asked = []
    monkeypatch.setattr(
        doctor.shutil, "disk_usage", lambda path: asked.append(path) or types.SimpleNamespace(free=free)
    )
    assert check_disk(str(tmp_path / "not" / "yet")).state == state
    assert asked == [tmp_path]


def test_an_object_store_is_asked_whether_it_answers(s3_bucket: str) -> None:
    assert check_disk(f"{s3_bucket}/not/yet").state == "ok"
    assert "no bucket" in check_disk("s3://no-such-bucket-here/data").text


def test_names_are_resolved_by_the_server_that_is_named(name_server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "DNS_TIMEOUT_S", 60)  # a machine that is slow today isn't what this asks
    good = [f"known{number}.example" for number in range(300)]
    check = check_names(good, [name_server])
    assert check.text.startswith("300 of 300 names resolved")
    assert (
        check_names([*good[:100], *[f"dead{number}.example" for number in range(200)]], [name_server]).state
        == "warning"
    )
    dead = check_names(["dead.example", "", "a" * 300, "\ud800"], [name_server])
    assert dead.state == "problem"
    assert "--dns" in dead.mend


def test_a_check_that_fails_is_a_problem_and_the_others_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def faint(path: str) -> None:
        raise ZeroDivisionError("oh")

    monkeypatch.setattr(doctor.shutil, "disk_usage", faint)
    checks = {check.name: check for check in examine(Wanted(ray=False))}
    assert checks["disk"].state == "problem"
    assert "ZeroDivisionError: oh" in checks["disk"].text
    assert checks["names"].state == "ok"


@pytest.mark.ray
def test_ray_is_reached_and_its_nodes_import_the_rooms(ray_here: RayExecutor) -> None:
    check = doctor.check_ray(None)
    assert check.state == "ok"
    assert "1 nodes, 2 CPUs" in check.text


def test_the_command_exits_with_1_on_a_problem(
    name_server: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    names = tmp_path / "names.txt"
    names.write_text("known1.example\n\n known2.example \n")
    assert run_main(["doctor", "--no-ray", "--names", str(names), "--dns", name_server, "--path", str(tmp_path)]) == 0
    lines = capfd.readouterr().out.splitlines()
    assert len(lines) == 8
    assert "2 of 2 names resolved" in lines[-1]
    names.write_text("dead.example")
    assert run_main(["doctor", "--no-ray", "--names", str(names), "--dns", name_server, "--json"]) == 1
    told = json.loads(capfd.readouterr().out)
    assert told["ok"] is False
    assert [check["name"] for check in told["checks"] if check["state"] == "problem"] == ["names"]


def test_wrong_usage_of_the_command_exits_with_2(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").touch()
    for argv in (["--names", "/absent"], ["--names", str(tmp_path / "empty")], ["--nope"]):
        assert run_main(["doctor", "--no-ray", *argv]) == 2
