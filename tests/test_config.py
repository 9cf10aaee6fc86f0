"""Settings: defaults, units, and mistakes that are named."""

from pathlib import Path

import pytest

from ddfs import config, errors


def test_an_empty_document_is_the_documented_defaults() -> None:
    settings = config.parse({})
    assert settings.templates_dir == Path("/srv/ddfs/templates")
    assert settings.reader_socket == Path("/run/ddfs/ddfs-ro.sock")
    assert settings.primary["default"].path == Path("/var/lib/libvirt/images")
    assert (settings.gate.wait, settings.gate.then) == (10.0, "refuse")


def test_every_documented_key_is_read(tmp_path: Path) -> None:
    file = tmp_path / "ddfs.toml"
    file.write_text(
        'mountpoint = "/m/./x"\nstate_dir = "/s"\nsocket = "/r/d.sock"\n'
        '[primary.default]\npool = "fast"\n[gate]\nwait = 0\nthen = "start"\n'
        '[network]\nlocation = "DE"\nallow_networks = ["10.0.0.0/8"]\n'
        'bandwidth = "100MiB"\nbandwidth_per_fetch = 1e6\nconnections_per_host = 3\n'
        "[fetch]\nat_once = 2\n"
        '[libvirt]\nuri = "test:///default"\n'
    )
    settings = config.load(str(file))
    assert settings.mountpoint == Path("/m/x")
    assert settings.reader_socket == Path("/r/d-ro.sock")
    assert settings.primary["default"] == config.PrimarySettings(None, "fast")
    assert settings.gate == config.GateSettings(0.0, "start")
    assert settings.network == config.NetworkSettings(
        "de", ("10.0.0.0/8",), 100 * 1024**2, 1_000_000, 3
    )
    assert settings.fetch == config.FetchSettings(2)
    assert settings.libvirt.uri == "test:///default"


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ('mount = "/x"', "mount: unknown key"),
        ("[gate]\nwate = 3", "gate.wate: unknown key"),
        ("[gate]\nwait = -1", "gate.wait"),
        ("[gate]\nwait = nan", "gate.wait"),
        ("[gate]\nwait = true", "gate.wait"),
        ('[gate]\nthen = "explode"', "gate.then"),
        ('mountpoint = "relative"', "mountpoint: an absolute path"),
        ("mountpoint = 3", "mountpoint: a path"),
        ("[primary.default]", "either path or pool"),
        ('[primary.default]\npath = "/a"\npool = "b"', "either path or pool"),
        ('[primary."a b"]\npath = "/a"', "primary: 'a b' cannot be"),
        ('[primary.default]\npath = "/a"\nquota = "lots"', "primary.default.quota: 'lots' is no"),
        ('[primary.default]\npath = "/a"\nquota = "101%"', "primary.default.quota: '101%' is more"),
        ('[primary.default]\npath = "/a"\nkeep_free = -1', "primary.default.keep_free: -1 bytes"),
        ('[primary.default]\npath = "/a"\nshared = "yes"', "primary.default.shared: true or false"),
        ('[primary.default]\npath = "/a"\nkeep_free = true', "primary.default.keep_free"),
        ('[network]\nlocation = "germany"', "network.location"),
        ('[network]\nallow_networks = "10.0.0.0/8"', "network.allow_networks"),
        ("[network]\nallow_networks = [3]", "network.allow_networks"),
        ('[network]\nallow_networks = ["10.0.0.0/8", "office"]', "CIDR notation, not 'office'"),
        ('[network]\nallow_networks = ["10.0.0.1/8"]', "network.allow_networks"),
        ("gate = 3", "gate: a table"),
        ('[network]\nbandwidth = "fast"', "network.bandwidth: 'fast' is no bandwidth"),
        ("[network]\nbandwidth = 100", "network.bandwidth: 100 bytes per second"),
        ("[network]\nbandwidth = nan", "network.bandwidth"),
        ("[network]\nbandwidth = true", "network.bandwidth"),
        ("[network]\nbandwidth_per_fetch = -1", "network.bandwidth_per_fetch"),
        ("[network]\nconnections_per_host = 0", "network.connections_per_host: between 1 and"),
        ("[network]\nconnections_per_host = 1.5", "network.connections_per_host: a whole"),
        ("[fetch]\nat_once = 0", "fetch.at_once: between 1 and"),
        ("[fetch]\nat_onec = 4", "fetch.at_onec: unknown key"),
        ("this is no toml", "not valid TOML"),
        ("x = " + "9" * 5000, "not valid TOML"),
        ("mountpoint = 0x" + "f" * 5000, "mountpoint: a path, not a huge number"),
        ("[network]\nallow_networks = [0x" + "f" * 5000 + "]", "strings, not a huge number"),
        ("[network]\nbandwidth = 0x" + "f" * 5000, "network.bandwidth: so many bytes per second"),
        ("[network]\nbandwidth = 0x" + "f" * 500, "network.bandwidth: so many bytes per second"),
        ("[primary.a]\npath = '/p'\nquota = 0x" + "f" * 500, "so many bytes cannot be"),
        ("[gate]\nwait = 0x" + "f" * 5000, "gate.wait: between 0 and 300"),
        ("x = " + "[" * 5000, "not valid TOML"),
    ],
)
def test_a_mistake_names_file_and_key(tmp_path: Path, text: str, word: str) -> None:
    file = tmp_path / "ddfs.toml"
    file.write_text(text)
    with pytest.raises(errors.ConfigError) as caught:
        config.load(str(file))
    assert str(file) in str(caught.value)
    assert word in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_named_file_must_exist_and_the_variable_names_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(errors.ConfigError, match="no such settings file"):
        config.load(str(tmp_path / "none"))
    file = tmp_path / "x.toml"
    file.write_text('state_dir = "/elsewhere"')
    monkeypatch.setenv(config.ENVIRONMENT, str(file))
    assert config.load().state_dir == Path("/elsewhere")
    file.write_bytes(b"\xff\xfe")
    with pytest.raises(errors.ConfigError, match="cannot be read"):
        config.load()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0", 0),
        ("65536", 65536),
        ("100MiB", 100 * 1024**2),
        ("100 MiB/s", 100 * 1024**2),
        ("1.5GiB", 3 * 512 * 1024**2),
        ("500k", 500 * 1024),
        ("10MB", 10_000_000),
        ("2 T", 2 * 1024**4),
        ("100000B/s", 100_000),
    ],
)
def test_a_bandwidth_has_a_unit(text: str, expected: int) -> None:
    assert config.parse_bandwidth(text) == expected


@pytest.mark.parametrize("text", ["", "-1", "1e9", "MiB", "1 PiB", "10", "nan", "1MiB/h", "9" * 19])
def test_what_is_no_bandwidth_is_refused(text: str) -> None:
    with pytest.raises(errors.InvalidValueError, match="is no bandwidth"):
        config.parse_bandwidth(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0", config.Amount(0)),
        ("200GiB", config.Amount(200 * 1024**3)),
        ("1.5T", config.Amount(3 * 512 * 1024**3)),
        ("10 GB", config.Amount(10 * 10**9)),
        ("80%", config.Amount(percent=80.0)),
        ("0.5 %", config.Amount(percent=0.5)),
    ],
)
def test_an_amount_of_disk_is_bytes_or_a_share(text: str, expected: config.Amount) -> None:
    assert config.parse_amount(text) == expected
    settings = config.parse({"primary": {"default": {"path": "/a", "quota": text}}})
    assert settings.primary["default"].quota == expected


def test_an_amount_is_of_the_whole_file_system() -> None:
    assert config.parse_amount("25%").of(1000) == 250
    assert config.parse_amount("700").of(1000) == 700
    assert config.parse({"primary": {"default": {"path": "/a", "keep_free": 5}}}).primary[
        "default"
    ].keep_free == config.Amount(5)
