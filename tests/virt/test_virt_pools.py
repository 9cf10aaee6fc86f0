import logging
import os

import libvirt
import pytest
import trio

from ddfs import errors
from ddfs.virt.pools import PoolKeeper, Rhythm
from ddfs.virt.template_pool import PoolStatus

FAST = Rhythm(quiet=0.1, latest=0.5, look=0.1, first_pause=0.05, longest_pause=0.2)


@pytest.fixture
def templates(libvirtd):
    path = libvirtd.directory / "templates and more"
    path.mkdir()
    (path / "debian-12.img").write_bytes(bytes(1000))
    return path


@pytest.fixture
def keeper(connection, templates):
    return PoolKeeper(connection, templates, FAST)


async def until(condition):
    with trio.fail_after(90):
        while not await condition():
            await trio.sleep(0.02)


async def test_pool_define_refresh_undefine(keeper, libvirtd, templates):
    assert await keeper.status() is None
    defined = await keeper.define()
    assert defined == PoolStatus("ddfs", str(templates), active=True, volumes=1)
    info = libvirtd.virsh("pool-info", "ddfs")
    assert "Autostart:      no" in info
    assert "Persistent:     yes" in info
    assert await keeper.define() == defined
    (templates / "new.img").write_bytes(b"x")
    assert (await keeper.status()).volumes == 1
    assert (await keeper.refresh()).volumes == 2
    assert await keeper.undefine() == PoolStatus("ddfs", str(templates), active=False)
    assert sorted(os.listdir(templates)) == ["debian-12.img", "new.img"]
    assert libvirtd.virsh("pool-list", "--all", "--name").strip() == ""


async def test_pool_with_a_name(keeper):
    assert (await keeper.define("vorlagen <1>")).name == "vorlagen <1>"
    assert (await keeper.define("other")).name == "vorlagen <1>"


@pytest.mark.parametrize("active", [True, False])
async def test_pool_of_somebody_else_on_the_path_is_adopted(keeper, libvirtd, templates, active):
    libvirtd.virsh("pool-define-as", "theirs", "dir", "--target", f"{templates}//")
    libvirtd.virsh("pool-autostart", "theirs")
    if active:
        libvirtd.virsh("pool-start", "theirs")
    adopted = await keeper.define("ours")
    assert adopted == PoolStatus("theirs", str(templates), active=True, volumes=1)
    assert libvirtd.virsh("pool-list", "--all", "--name").split() == ["theirs"]
    assert "Autostart:      yes" in libvirtd.virsh("pool-info", "theirs")


async def test_pool_on_a_path_that_xml_has_to_escape(connection, libvirtd):
    path = libvirtd.directory / "a & <b>"
    path.mkdir()
    keeper = PoolKeeper(connection, path, FAST)
    assert (await keeper.define()).active
    assert (await keeper.status()).path == str(path)


async def test_pool_that_is_transient(keeper, libvirtd, templates):
    libvirtd.virsh("pool-create-as", "theirs", "dir", "--target", templates)
    assert (await keeper.define()).name == "theirs"
    await keeper.undefine()
    assert await keeper.status() is None


async def test_pool_whose_name_is_taken(keeper, libvirtd):
    libvirtd.virsh("pool-define-as", "ddfs", "dir", "--target", "/nowhere")
    with pytest.raises(errors.LibvirtError, match="called 'ddfs' on another path; choose another"):
        await keeper.define()
    assert await keeper.status() is None
    assert (await keeper.define("other")).name == "other"


async def test_pool_of_a_kind_that_would_unmount_is_refused(keeper, libvirtd, templates):
    libvirtd.virsh(
        "pool-define-as", "theirs", "fs", "--source-dev", "/dev/none", "--target", templates
    )
    for method in (keeper.define, keeper.refresh, keeper.undefine):
        with pytest.raises(errors.LibvirtError, match="of type 'fs', which unmounts"):
            await method()
    assert libvirtd.virsh("pool-list", "--all", "--name").split() == ["theirs"]


async def test_pool_that_is_not_defined(keeper):
    for method in (keeper.refresh, keeper.undefine):
        with pytest.raises(errors.LibvirtError, match="make one with: ddfs pool define") as caught:
            await method()
        assert caught.value.code == libvirt.VIR_ERR_NO_STORAGE_POOL


async def test_pool_whose_directory_is_missing_is_defined_and_started_later(keeper, templates):
    away = templates.with_name("away")
    templates.rename(away)
    with pytest.raises(errors.LibvirtError, match="No such file or directory"):
        await keeper.define()
    assert (await keeper.status()).active is False
    away.rename(templates)
    assert (await keeper.refresh()).active


async def test_pool_that_is_busy_is_asked_again(keeper, connection, libvirtd, templates):
    """vol-upload's own refresh and vol-clone count as jobs, in which a refresh is refused."""
    await keeper.define()
    libvirtd.virsh("vol-create-as", "ddfs", "source.img", "300M")
    clone = ["vol-clone", "source.img", "copy.img", "--pool", "ddfs"]

    async def is_busy():
        try:
            await connection.call(lambda c: c.storagePoolLookupByName("ddfs").refresh(0))
        except errors.LibvirtError as error:
            return error.code == libvirt.VIR_ERR_INTERNAL_ERROR
        return False

    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.to_thread.run_sync, lambda: libvirtd.virsh(*clone))
        await until(is_busy)
        assert (await keeper.refresh()).volumes == 3


async def test_keeper_starts_the_pool_when_libvirtd_and_the_mount_are_back(
    keeper, libvirtd, nursery, templates, caplog
):
    caplog.set_level(logging.INFO, "ddfs.virt")

    async def has_said(*texts):
        said = [record.getMessage() for record in caplog.records]
        found = [next((t for t in texts if t in line), line) for line in said]
        return found == list(texts)

    active, down = "libvirt pool 'ddfs' is active", "libvirtd does not answer"
    missing = "No such file or directory"
    await keeper.define()
    nursery.start_soon(keeper.run)
    await until(lambda: has_said(active))
    libvirtd.kill()
    await until(lambda: has_said(active, down))
    libvirtd.start()
    await until(lambda: has_said(active, down, active))
    libvirtd.kill()
    await until(lambda: has_said(active, down, active, down))
    away = templates.with_name("away")
    templates.rename(away)
    libvirtd.start()
    await until(lambda: has_said(active, down, active, down, missing))
    assert (await keeper.status()).active is False
    away.rename(templates)
    await until(lambda: has_said(active, down, active, down, missing, active))
    assert (await keeper.status()).volumes == 1
    await trio.sleep(0.5)
    assert await has_said(active, down, active, down, missing, active)


async def test_keeper_starts_a_pool_that_somebody_stopped(keeper, libvirtd, nursery):
    await keeper.define()
    libvirtd.virsh("pool-destroy", "ddfs")
    nursery.start_soon(keeper.run)

    async def is_active():
        return (await keeper.status()).active

    await until(is_active)


async def test_keeper_starts_before_libvirtd_does(keeper, libvirtd, nursery):
    libvirtd.kill()
    nursery.start_soon(keeper.run)
    await trio.sleep(0.5)
    libvirtd.start()
    assert (await keeper.define()).active


async def test_keeper_refreshes_after_changes(keeper, libvirtd, nursery, templates):
    await keeper.define()
    nursery.start_soon(keeper.run)
    await trio.sleep(0.5)  # the refresh that a pool gets that ran before we did
    for number in range(20):
        (templates / f"t{number}.img").write_bytes(b"x")
        keeper.note_changed()
        await trio.sleep(0.005)

    async def lists_all():
        return (await keeper.status()).volumes == 21

    await until(lists_all)


async def test_keeper_refreshes_a_pool_that_ran_before_it(
    keeper, connection, libvirtd, nursery, templates
):
    await PoolKeeper(connection, templates, FAST).define()
    (templates / "meanwhile.img").write_bytes(b"x")
    nursery.start_soon(keeper.run)

    async def lists_it():
        return (await keeper.status()).volumes == 2

    await until(lists_it)


async def test_keeper_outlives_a_pool_that_breaks(keeper, libvirtd, nursery, templates, caplog):
    await keeper.define()
    nursery.start_soon(keeper.run)
    away = templates.with_name("away")
    await trio.sleep(0.5)
    templates.rename(away)
    keeper.note_changed()

    async def is_broken():
        return not (await keeper.status()).active

    def said() -> int:
        return len([r for r in caplog.records if "No such file" in r.getMessage()])

    async def has_said():
        return said() > 0

    await until(is_broken)
    await until(has_said)
    await trio.sleep(0.5)
    assert said() == 1
    away.rename(templates)

    async def works():
        return (await keeper.status()).active

    await until(works)


async def test_keeper_does_nothing_to_an_undefined_pool(keeper, libvirtd, nursery):
    nursery.start_soon(keeper.run)
    keeper.note_changed()
    await trio.sleep(0.5)
    assert libvirtd.virsh("pool-list", "--all", "--name").strip() == ""
