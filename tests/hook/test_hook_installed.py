"""Where the script finds ddfs, and what it does where it does not."""

import re
from pathlib import Path

from hook_host import REFUSED, SCRIPT, TOP, Host, daemon, domain


def install(host: Host, home: Path | str) -> Path:
    """A copy with a line that says where ddfs lies, as the script itself explains."""
    text = SCRIPT.read_text()
    text = re.sub(r"(?m)^ddfs_home=.*$", f"ddfs_home='{home}'", text)
    text = re.sub(r"(?m)^ddfs_config=.*$", f"ddfs_config='{host.settings}'", text)
    host.script = host.root / "installed hook"
    host.script.write_text(text)
    host.script.chmod(0o755)
    host.environ.clear()
    return host.script


def test_an_installed_copy_needs_no_environment(host: Host) -> None:
    install(host, TOP)
    with daemon(host.socket, REFUSED):
        done = host.run(domain(host.templates / "t.qcow2"))
    assert "42 % here" in done.stderr


def test_a_symlink_to_the_checkout_finds_it(host: Host) -> None:
    host.script = host.root / "link"
    host.script.symlink_to(SCRIPT)
    with daemon(host.socket, REFUSED):
        assert "42 % here" in host.run(domain(host.templates / "t.qcow2")).stderr


def test_without_ddfs_only_domains_that_name_the_mountpoint_are_refused(host: Host) -> None:
    install(host, host.root / "gone")
    assert host.run(domain("/elsewhere.qcow2")).returncode == 0
    done = host.run(domain(host.templates / "t.qcow2"))
    assert done.returncode == 1
    assert "the hook cannot run" in done.stderr
    assert str(host.mountpoint) in done.stderr


def test_a_broken_ddfs_counts_as_none(host: Host) -> None:
    home = host.root / "broken home"
    (home / "ddfs").mkdir(parents=True)
    (home / "ddfs/hook.py").write_text("import no_such_module\n")
    install(host, home)
    assert host.run(domain("/elsewhere.qcow2")).returncode == 0
    done = host.run(domain(host.templates / "t.qcow2"))
    assert done.returncode == 1
    assert "ModuleNotFoundError" in done.stderr
