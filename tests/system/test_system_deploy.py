"""Deploying over three hosts: one of them can, whatever goes wrong on the others."""

from __future__ import annotations

import json
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from lab.host import DDFS
from lab.processes import PATIENCE_SECONDS, wait_until
from lab.region import Node, region
from lab.site import MIB, Published, site

# A domain that only a host with that program can define.
XML = """<domain type="qemu"><name>any</name><memory unit="MiB">64</memory>
<os><type arch="x86_64">hvm</type></os><devices><emulator>/run/libvirt/emulator</emulator>
<disk type="file" device="disk"><source file="/nowhere"/><target dev="vda" bus="virtio"/></disk>
</devices></domain>"""

FAILING_HOOK = "#!/bin/sh\n[ \"$2\" != prepare ] || { echo 'not here, please' >&2; exit 1; }\n"


@pytest.fixture(scope="module")
def nodes(lab_directory: Path) -> Iterator[list[Node]]:
    with region(lab_directory / "r", ("one", "two", "three")) as nodes:
        yield nodes


@pytest.fixture(scope="module")
def settings(nodes: list[Node]) -> Path:
    """Whoever deploys has no daemon of his own."""
    path = nodes[0].ddfs.directory.parent.parent / "deploy.toml"
    path.write_text(
        "".join(f'[host.{node.name}]\nsocket = "{node.ddfs.socket}"\n' for node in nodes)
    )
    return path


@pytest.fixture
def template(nodes: list[Node], small: Published, request: pytest.FixtureRequest) -> Iterator[str]:
    """A template that no host has yet."""
    name = f"t{abs(hash(request.node.name)) % 10**9}"
    for node in nodes:
        node.clear()
        node.ddfs.ddfs("template", "add", name, small.source)
    yield name
    for node in nodes:
        node.clear()
        node.ddfs.ddfs("template", "remove", name, "--purge", check=False)


def deploy(settings: Path, template: str, *words: str) -> subprocess.CompletedProcess[str]:
    command = [DDFS, "--config", settings, "deploy", template, "--name", "vm", "--network", "none"]
    if "--memory" not in words:
        words = (*words, "--memory", "64M")
    return subprocess.run(
        [*map(str, command), *words], capture_output=True, text=True, timeout=120, check=False
    )


def runs_on(node: Node) -> bool:
    return node.virsh("domstate", "vm", check=False).stdout.strip() == "running"


def test_the_first_host_gets_it_with_a_seed(
    nodes: list[Node], settings: Path, template: str, tmp_path: Path
) -> None:
    (tmp_path / "user-data").write_text("#cloud-config\npassword: geheim\n")
    done = deploy(
        settings, template, "--user-data", str(tmp_path / "user-data"),
        "--disk-size", "32M", "--vcpus", "2", "--json",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said["host"] == "one"
    assert runs_on(nodes[0])
    assert [node.domains() for node in nodes] == [{"vm"}, set(), set()]
    xml = nodes[0].virsh("dumpxml", "vm").stdout
    assert ">65536</memory>" in xml
    assert ">2</vcpu>" in xml
    assert b"password: geheim" in Path(said["seed"]).read_bytes()
    assert Path(said["seed"]).read_bytes()[32808:32840].strip() == b"cidata"
    # Again: the name is taken there, so that the next host gets it.
    again = deploy(settings, template, "--json")
    assert json.loads(again.stdout)["host"] == "two"
    assert "one: a domain called vm is there already" in again.stderr


def no_daemon(node: Node, template: str) -> None:
    node.ddfs.stop()


def no_disk_pool(node: Node, template: str) -> None:
    node.virsh("pool-destroy", "default")


def no_template_pool(node: Node, template: str) -> None:
    node.ddfs.ddfs("pool", "undefine")


def no_start(node: Node, template: str) -> None:
    node.install_hook(FAILING_HOOK)


def no_room(node: Node, template: str) -> None:
    node.run("mount", "-t", "tmpfs", "-o", "size=1M", "ddfs-lab", node.ddfs.vms)


def disk_in_the_way(node: Node, template: str) -> None:
    (node.ddfs.vms / "vm.qcow2").write_text("mine")


FAULTS = {
    no_daemon: "",
    no_disk_pool: "pool default is not active",
    no_template_pool: "libvirt does not show the template pool",
    no_start: "not here, please",
    no_room: "too little room",
    disk_in_the_way: "vm.qcow2 is there already",
}


def mend(node: Node, template: str) -> None:
    if node.ddfs.daemon is None:
        node.ddfs.serve()
    node.run("umount", node.ddfs.vms, check=False)
    node.virsh("pool-start", "default", check=False)
    node.ddfs.ddfs("pool", "define", check=False)


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_what_fails_on_one_host_is_taken_back_and_the_next_one_gets_it(
    nodes: list[Node], settings: Path, template: str, fault: Callable[[Node, str], None]
) -> None:
    before = nodes[0].files()
    fault(nodes[0], template)
    try:
        kept = (nodes[0].ddfs.vms / "vm.qcow2").exists()
        done = deploy(settings, template, "--json")
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["host"] == "two"
        assert "ddfs: one: " in done.stderr
        assert FAULTS[fault] in done.stderr
        assert runs_on(nodes[1])
        assert nodes[0].domains() == set()
        # What was in the way before stays what it was.
        assert (nodes[0].ddfs.vms / "vm.qcow2").exists() == kept
        assert nodes[0].files() - before <= {"vms/vm.qcow2"}
    finally:
        mend(nodes[0], template)


def test_what_cannot_be_written_to_is_called_read_only(
    nodes: list[Node], settings: Path, template: str
) -> None:
    node = nodes[0]
    node.run("mount", "-t", "tmpfs", "-o", "ro", "ddfs-lab", node.ddfs.vms)
    node.run("mount", "--bind", node.ddfs.images, node.ddfs.images)
    node.run("mount", "-o", "remount,bind,ro", node.ddfs.images)
    try:
        done = deploy(settings, template, "--host", "one")
    finally:
        node.run("umount", node.ddfs.vms)
        node.run("umount", node.ddfs.images)
    assert done.returncode == 4
    assert f"{node.ddfs.vms} is read-only" in done.stderr
    assert f"primary storage {node.ddfs.images} is read-only" in done.stderr
    assert "too little room" not in done.stderr


def test_a_host_that_does_not_know_the_template_gets_it_as_another_has_it(
    nodes: list[Node], settings: Path, template: str
) -> None:
    """And has it no more, where it was for nothing."""
    before = nodes[0].files()
    source = nodes[2].ddfs.template(template)["source"]
    for node in nodes[:2]:
        node.ddfs.ddfs("template", "remove", template)
    no_start(nodes[0], template)
    done = deploy(settings, template, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["host"] == "two"
    for name in ("one", "two"):
        assert f"ddfs: {name}: {template} is registered there" in done.stderr
    assert runs_on(nodes[1])
    assert nodes[1].ddfs.template(template)["source"] == source
    unknown = nodes[0].ddfs.ddfs("template", "show", template, check=False)
    assert "no template is called" in unknown.stderr
    assert nodes[0].files() == before
    assert not list(nodes[0].ddfs.images.glob(f"{template}@*"))


def test_a_download_that_fails_leaves_nothing(
    nodes: list[Node], settings: Path, template: str, lab_directory: Path
) -> None:
    with site(lab_directory / "gone", [None]) as shop:
        dead = shop.publish("dead", size=8 * MIB)
        nodes[0].ddfs.ddfs("template", "add", "dead", dead.source)
    before = [node.files() for node in nodes]
    done = deploy(settings, "dead", "--host", "one")
    assert (done.returncode, done.stdout) == (4, "")
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("ddfs: vm runs nowhere: one: dead.qcow2: ")
    assert [node.files() for node in nodes] == before
    assert not nodes[0].domains()
    nodes[0].ddfs.ddfs("template", "remove", "dead")


def test_a_document_that_one_host_cannot_define(
    nodes: list[Node], settings: Path, template: str, tmp_path: Path
) -> None:
    (tmp_path / "vm.xml").write_text(XML)
    nodes[1].run("ln", "-sf", "/usr/bin/qemu-system-x86_64", "/run/libvirt/emulator")
    done = deploy(settings, template, "--xml", str(tmp_path / "vm.xml"), "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["host"] == "two"
    assert "emulator" in done.stderr
    assert nodes[0].domains() == set()
    assert not list(nodes[0].ddfs.vms.iterdir())


def test_what_no_host_has(nodes: list[Node], settings: Path, template: str, tmp_path: Path) -> None:
    too_much = deploy(settings, template, "--memory", "900T")
    assert too_much.returncode != 0
    done = deploy(settings, template, "--arch", "s390x", "--memory", "1T", "--network", "nonet")
    assert done.returncode == 4
    for node in nodes:
        assert f"{node.name}: the host is of architecture x86_64, not s390x" in done.stderr
        assert node.domains() == set()
    last = done.stderr.strip().splitlines()[-1]
    assert all(f"{node.name}: " in last for node in nodes), "every host's reason"
    assert "MiB of memory are free" in done.stderr
    assert last.count("no network is called 'nonet'") == len(nodes)
    for text, says in (("<domain>", "no element found"), ("<a/>", "not a <domain>")):
        (tmp_path / "bad.xml").write_text(text)
        bad = deploy(settings, template, "--xml", str(tmp_path / "bad.xml"))
        assert (bad.returncode, bad.stderr.count("\n")) == (2, 1), "wrong on every host"
        assert says in bad.stderr
    unknown = deploy(settings, template, "--host", "nine")
    assert (unknown.returncode, unknown.stderr.count("\n")) == (2, 1)
    assert "one, two, three" in unknown.stderr


def test_a_daemon_that_dies_midway_takes_it_back_when_it_comes_again(
    nodes: list[Node], settings: Path, template: str
) -> None:
    node = nodes[0]
    node.ddfs.ddfs("prefetch", template)
    mark = node.ddfs.directory / "hook-runs"
    node.install_hook(f'#!/bin/sh\n[ "$2" != prepare ] || {{ touch {mark}; sleep 3; exit 1; }}\n')
    command = [DDFS, "--config", settings, "deploy", template, "--name", "vm", "--network", "none",
               "--memory", "64M", "--host", "one"]  # fmt: skip
    with subprocess.Popen(list(map(str, command)), stderr=subprocess.PIPE, text=True) as deploying:
        wait_until(mark.exists, "the domain is being started")
        assert (node.ddfs.vms / "vm.qcow2").exists()
        node.ddfs.kill()
        said = deploying.communicate(timeout=PATIENCE_SECONDS)[1].splitlines()
    assert said[0].startswith("ddfs: one: vm is taken back over there, at the latest when ")
    assert said[1].startswith("ddfs: vm runs nowhere: one: ")
    assert deploying.returncode == 4
    node.install_hook(node.ddfs.hook())
    node.ddfs.serve()
    wait_until(lambda: not node.domains(), "the domain is gone")
    wait_until(lambda: not list(node.ddfs.vms.iterdir()), "the disk is gone")
    wait_until(lambda: not list((node.ddfs.state / "deploying").iterdir()), "the note is gone")


def test_ctrl_c_in_the_start_leaves_nothing(
    nodes: list[Node], settings: Path, template: str, tmp_path: Path
) -> None:
    nodes[0].ddfs.ddfs("prefetch", template)
    before = nodes[0].files()
    # The lab's directories are the same for all hosts.
    begun = nodes[0].ddfs.directory / "begun"
    nodes[0].install_hook(
        f'#!/bin/sh\n[ "$2" != prepare ] || {{ touch {begun}; sleep 2; }}\nexit 0\n'
    )
    (tmp_path / "user-data").write_text("#cloud-config\n")
    command = [DDFS, "--config", settings, "deploy", template, "--name", "vm", "--network", "none"]
    words = ["--memory", "64M", "--host", "one", "--user-data", tmp_path / "user-data"]
    with subprocess.Popen([*command, *words], stderr=subprocess.PIPE, text=True) as process:
        wait_until(begun.exists, "libvirt runs the hook")
        process.send_signal(signal.SIGINT)
        said = process.communicate(timeout=PATIENCE_SECONDS)[1]
    assert process.returncode == 130
    assert said == "ddfs: one: vm was taken back\n"
    assert not nodes[0].domains()
    assert nodes[0].files() == before
