#!/bin/bash
# What contrib/package --check does in the clean system, as a unit of its systemd: in its first
# boot, and in the one after it. A local server is the source: the system has no other mirrors.
set -eu
[ -e /root/ddfs.deb ] || { echo "only for contrib/package --check" >&2; exit 2; }
export DEBIAN_FRONTEND=noninteractive
cd /root
images=/var/lib/libvirt/images
say() { echo "-- $*"; }
fail() { echo "NOT: $*"; journalctl -b -u 'ddfs*' -u libvirtd --no-pager | tail -25; exit 1; }
until_true() {
    for _ in $(seq 300); do if eval "$1" > /dev/null 2>&1; then return 0; fi; sleep 0.2; done
    fail "$1"
}
# `systemctl is-active A B` is content with one of them.
all() { local unit; for unit in "${@:2}"; do systemctl "$1" -q "$unit" || return 1; done; }
value() { systemctl show -P "$1" "$2"; }
is_mounted() { grep -q " /srv/ddfs " /proc/self/mountinfo; }
is_domain() { [ "$(virsh domstate "$1")" = "$2" ]; }

first_boot() {
    apt-get update -qq
    apt-get install -y -qq --no-install-recommends ./ddfs.deb libvirt-daemon-system \
        libvirt-clients qemu-system-x86 > apt.log 2>&1 || { tail -20 apt.log; exit 1; }
    say "installed beside libvirt: $(ddfs --version)"
    all is-enabled ddfs.service ddfs-pool.target ddfs-autostart.service || fail "enabled"
    systemctl show libvirtd -p After | grep -q ddfs-pool.target || fail "libvirtd starts after the pool"
    import_all || fail "every module finds what it imports"
    # A container may not divide its cgroups further.
    echo 'cgroup_controllers = []' >> /etc/libvirt/qemu.conf
    # As at boot: libvirtd wants the target, and is started after it.
    systemctl stop libvirtd.service libvirtd.socket libvirtd-ro.socket libvirtd-admin.socket
    systemctl start libvirtd.service
    all is-active ddfs.service ddfs-pool.target || fail "libvirtd brings the pool with it"
    [ "$(stat -c %U:%G:%a /run/ddfs/ddfs.sock)" = root:ddfs:660 ] || fail "the socket is the group's"
    ddfs pool define > /dev/null
    ddfs doctor > doctor.txt || { cat doctor.txt; fail "doctor is content"; }
    say "libvirtd brought the daemon with it, and doctor is content"

    systemctl enable -q --now mirror
    add disk; add boot
    define vm disk; define boot boot
    sed "s|$images/vm.qcow2|/srv/ddfs/templates/disk.img|; s|qcow2|raw|; s|>vm<|>bad<|" vm.xml > bad.xml
    virsh -q define bad.xml > /dev/null
    virsh start bad > bad.txt 2>&1 && fail "a writable template is refused"
    grep -q "ddfs: vda of bad is the template" bad.txt || { cat bad.txt; fail "the hook says why"; }
    virsh -q start vm > /dev/null || fail "a VM starts"
    cmp www/disk.img /srv/ddfs/templates/disk.img
    say "the hook refused a writable template, and fetched what the VM needs: $(cd $images && ls disk@*)"

    systemctl kill --signal=KILL --kill-who=main ddfs
    until_true "[ \$(value NRestarts ddfs) = 1 ] && all is-active ddfs"
    cmp www/disk.img /srv/ddfs/templates/disk.img
    mkdir -p /etc/systemd/system/ddfs.service.d
    printf '[Service]\nWatchdogSec=3\n' > /etc/systemd/system/ddfs.service.d/trial.conf
    systemctl daemon-reload && systemctl restart ddfs
    kill -STOP "$(value MainPID ddfs)"
    until_true "journalctl -u ddfs | grep -q 'Failed with result .watchdog'"
    until_true "all is-active ddfs && virsh pool-refresh ddfs"
    systemctl restart libvirtd
    is_domain vm running || fail "the VM went on"
    say "killed, and frozen under the watchdog, the daemon came back; the VM went on"

    rm /etc/systemd/system/ddfs.service.d/trial.conf
    ddfs autostart enable boot > /dev/null
    compgen -G "$images/boot@*" > /dev/null && fail "nobody has fetched the template yet"
    # It is the mirror that comes late, as a network may.
    mkdir -p /etc/systemd/system/mirror.service.d
    printf '[Unit]\nAfter=libvirtd.service\n[Service]\nExecStartPre=/bin/sleep 3\n' \
        > /etc/systemd/system/mirror.service.d/late.conf
    touch booted-once
}

second_boot() {
    until_true "all is-active ddfs ddfs-pool.target libvirtd"
    local pool libvirt late
    pool=$(value ActiveEnterTimestampMonotonic ddfs-pool.target)
    libvirt=$(value ExecMainStartTimestampMonotonic libvirtd)
    [ "$pool" -gt 0 ] && [ "$libvirt" -ge "$pool" ] || fail "the pool is there before libvirtd"
    until_true "is_domain boot running"
    until_true "grep -q 'booted from its template' $images/boot.serial"
    journalctl -b -u ddfs-autostart | grep -q "boot: started" || fail "it was ddfs that started it"
    until_true "[ \$(value SubState ddfs-autostart) = exited ]"
    [ "$(value Result ddfs-autostart)" = success ] || fail "ddfs-autostart ended well"
    late=$(($(value ExecMainStartTimestampMonotonic mirror) - libvirt))
    [ "$late" -gt 0 ] || fail "the mirror was late"
    is_domain vm "shut off" || fail "a domain without the mark stays off"
    say "booted again: pool, libvirtd, the mirror $((late / 1000)) ms later; then the domain with the mark"

    systemctl restart ddfs
    is_mounted && cmp www/boot.img /srv/ddfs/templates/boot.img || fail "there again"
    virsh -q destroy boot
    systemctl stop ddfs
    [ "$(value ActiveState ddfs)/$(value Result ddfs)/$(value NRestarts ddfs)" = inactive/success/0 ] \
        || fail "it ends when it is told to"
    is_mounted && fail "unmounted"
    timeout 10 virsh -q list --all > /dev/null || fail "libvirtd answers without ddfs"
    virsh -q start boot > /dev/null || fail "what is published needs no daemon"
    virsh -q destroy boot
    systemctl start ddfs
    is_mounted || fail "mounted again"
    sleep 2
    is_domain boot "shut off" || fail "once for each boot"
    virsh -q start boot > /dev/null || fail "it starts again"
    say "restarted, stopped and started; the domain could start while it was off"

    apt-get remove -y -qq ddfs > /dev/null 2>&1
    is_mounted && fail "unmounted"
    [ ! -e /usr/bin/ddfs ] && [ ! -e /usr/lib/ddfs ] && [ -e /etc/ddfs/ddfs.toml ] || fail "removed"
    cmp www/boot.img /srv/ddfs/templates/boot.img
    is_domain boot running || fail "the VM goes on without ddfs"
    apt-get purge -y -qq ddfs > /dev/null 2>&1
    [ ! -e /etc/ddfs/ddfs.toml ] && [ ! -e /etc/libvirt/hooks/qemu.d/ddfs ] || fail "purged"
    [ -e /var/lib/ddfs/catalogue.db ] || fail "the catalogue stays"
    say "removed under the running VM: catalogue and images stayed, and purging took the settings"
    echo "the package is right"
}

# Each module of the package, and the library that it has beside them.
import_all() {
    /usr/bin/python3 -I - << 'X'
import ctypes, importlib, pkgutil, sys
sys.path.insert(0, "/usr/lib/ddfs")
import ddfs
for module in pkgutil.walk_packages(ddfs.__path__, "ddfs."):
    # Alembic runs what is in there by itself.
    if not module.name.startswith("ddfs.catalogue.migrations."):
        importlib.import_module(module.name)
from ddfs.fetch import twofold
if ctypes.CDLL(twofold.LIBRARY).ddfs_sha256_supported() and not twofold.is_available():
    sys.exit("the compiled library does not hash as hashlib does")
X
}

# The template NAME.
add() {
    local sum; sum=$(sha256sum < "www/$1.img" | cut -d' ' -f1)
    until_true "ddfs template add $1 http://127.0.0.1:8931/$1.img --checksum sha256:$sum"
}

# The domain NAME, on the template TEMPLATE.
define() {
    # -u: the overlay is made without a look at the template, which is not here yet.
    qemu-img create -q -f qcow2 -F raw -b "/srv/ddfs/templates/$2.img" -u "$images/$1.qcow2" 2M
    cat > "$1.xml" << X
<domain type="qemu"><name>$1</name><memory unit="MiB">64</memory><os><type>hvm</type></os><devices>
<disk type="file" device="disk"><driver name="qemu" type="qcow2"/><source file="$images/$1.qcow2"/><target dev="vda"/></disk>
<serial type="file"><source path="$images/$1.serial"/></serial>
</devices></domain>
X
    virsh -q define "$1.xml" > /dev/null
}

# Else the end of the system waits for minutes for guests that hear no power button.
trap 'for domain in $(virsh -q list --name); do virsh -q destroy "$domain" > /dev/null; done' EXIT
if [ -e booted-once ]; then second_boot; else first_boot; fi
