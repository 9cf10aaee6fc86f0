import socket
import subprocess
import sys

import libvirt
import pytest
import trio

from ddfs import errors
from ddfs.virt.connection import Libvirt, is_down


async def test_connection_says_when_nobody_answers(tmp_path):
    down = Libvirt(f"qemu+unix:///system?socket={tmp_path}/none")
    for _ in range(2):
        with pytest.raises(errors.LibvirtError, match=r"does not answer at .*; start it") as caught:
            await down.call(lambda c: c.getHostname())
        assert is_down(caught.value)
        assert "\n" not in str(caught.value)
    await down.close()


async def test_connection_has_libvirts_code_and_is_not_down_for_it(driver):
    with pytest.raises(errors.LibvirtError, match="no storage pool with matching name") as caught:
        await driver.call(lambda c: c.storagePoolLookupByName("none"))
    assert caught.value.code == libvirt.VIR_ERR_NO_STORAGE_POOL
    assert not is_down(caught.value)
    with pytest.raises(ZeroDivisionError):
        await driver.call(lambda c: 1 // 0)
    assert await driver.call(lambda c: c.getType()) == "TEST"


async def test_connection_a_missing_directory_is_not_a_missing_libvirtd(connection, tmp_path):
    """Both have the code VIR_ERR_SYSTEM_ERROR."""
    xml = f"<pool type='dir'><name>a</name><target><path>{tmp_path}/none</path></target></pool>"
    with pytest.raises(errors.LibvirtError, match="No such file or directory") as caught:
        await connection.call(lambda c: c.storagePoolDefineXML(xml, 0).create(0))
    assert caught.value.code == libvirt.VIR_ERR_SYSTEM_ERROR
    assert not is_down(caught.value)


async def test_connection_is_made_again_after_a_restart(connection, libvirtd):
    first = await connection.call(lambda c: c)
    assert await connection.call(lambda c: c) is first
    libvirtd.kill()
    with pytest.raises(errors.LibvirtError) as caught:
        await connection.call(lambda c: c.listAllDomains(0))
    assert is_down(caught.value)
    libvirtd.start()
    assert await connection.call(lambda c: c.listAllDomains(0)) == []
    # Restarted between two calls, so that the first one after it finds a closed socket.
    libvirtd.kill()
    libvirtd.start()
    assert await connection.call(lambda c: c.listAllDomains(0)) == []


async def test_connection_that_dies_in_a_call(connection, libvirtd):
    def outlive(c):
        libvirtd.kill()
        return c.listAllDomains(0)

    with pytest.raises(errors.LibvirtError, match="does not answer") as caught:
        await connection.call(outlive)
    assert is_down(caught.value)


async def test_connection_that_hangs_can_be_left(tmp_path):
    with socket.socket(socket.AF_UNIX) as mute:
        mute.bind(str(tmp_path / "s"))
        mute.listen()
        hanging = Libvirt(f"qemu+unix:///system?socket={tmp_path}/s")
        with trio.move_on_after(0.2) as scope:
            await hanging.call(lambda c: c.getHostname())
        assert scope.cancelled_caught
        with trio.fail_after(90):
            await hanging.close()
        with mute.accept()[0]:
            pass  # lets the thread go


async def test_connection_calls_do_not_overlap(driver):
    running = []

    def count(_connection):
        running.append(1)
        assert len(running) == 1
        trio.from_thread.run(trio.sleep, 0.01)
        running.pop()

    with trio.fail_after(90):
        async with trio.open_nursery() as nursery:
            for _ in range(5):
                nursery.start_soon(driver.call, count)
    assert running == []


def test_connection_libvirt_prints_nothing_itself():
    program = (
        "import trio, ddfs.errors\n"
        "from ddfs.virt.connection import Libvirt\n"
        "async def main():\n"
        "    try:\n"
        "        await Libvirt('test:///default').call(lambda c: c.lookupByName('none'))\n"
        "    except ddfs.errors.LibvirtError:\n"
        "        print('raised')\n"
        "trio.run(main)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
    assert (done.stdout, done.stderr) == (b"raised\n", b"")
