#!/bin/bash
# What contrib/package --check does in the clean system, as a unit of its systemd. A local
# server is the source: the system has no other mirrors.
set -eu
[ -e /root/ddfs.deb ] || { echo "only for contrib/package --check" >&2; exit 2; }
export DEBIAN_FRONTEND=noninteractive
cd /root
say() { echo "-- $*"; }
fail() { echo "NOT: $*"; journalctl -u ddfs -u libvirtd --no-pager | tail -25; exit 1; }
until_true() {
    for _ in $(seq 100); do if eval "$1" > /dev/null 2>&1; then return 0; fi; sleep 0.2; done
    fail "$1"
}

# Else the end of the system waits for minutes for guests that hear no power button.
trap 'for domain in $(virsh -q list --name); do virsh -q destroy "$domain"; done' EXIT

apt-get update -qq
apt-get install -y -qq --no-install-recommends ./ddfs.deb libvirt-daemon-system libvirt-clients \
    qemu-system-x86 > apt.log 2>&1 || { tail -20 apt.log; exit 1; }
say "installed beside libvirt: $(ddfs --version)"
systemctl is-enabled -q ddfs.service ddfs-pool.target || fail "enabled"
systemctl show libvirtd -p After | grep -q ddfs-pool.target || fail "libvirtd starts after the pool"
# A container may not divide its cgroups further.
echo 'cgroup_controllers = []' >> /etc/libvirt/qemu.conf
# As at boot: libvirtd wants the target, and is started after it.
systemctl stop libvirtd.service libvirtd.socket libvirtd-ro.socket libvirtd-admin.socket
systemctl start libvirtd.service
systemctl is-active -q ddfs.service ddfs-pool.target || fail "libvirtd brings the pool with it"
[ "$(stat -c %U:%G:%a /run/ddfs/ddfs.sock)" = root:ddfs:660 ] || fail "the socket is the group's"
ddfs pool define > /dev/null
ddfs doctor > doctor.txt || { cat doctor.txt; fail "doctor is content"; }
say "libvirtd brought the daemon with it, and doctor is content"

mkdir www && head -c 3000000 /dev/urandom > www/disk.img
(cd www && exec python3 -m http.server --bind 127.0.0.1 8931 > /dev/null 2>&1) &
until_true "ddfs template add disk http://127.0.0.1:8931/disk.img --checksum sha256:$(sha256sum < www/disk.img | cut -d' ' -f1)"
# -u: the overlay is made without a look at the template, which is not here yet.
qemu-img create -q -f qcow2 -F raw -b /srv/ddfs/templates/disk.img -u /var/lib/libvirt/images/vm.qcow2 3000320
cat > vm.xml <<'X'
<domain type="qemu"><name>vm</name><memory unit="MiB">64</memory><os><type>hvm</type></os><devices>
<disk type="file" device="disk"><driver name="qemu" type="qcow2"/><source file="/var/lib/libvirt/images/vm.qcow2"/><target dev="vda"/></disk>
</devices></domain>
X
sed 's|/var/lib/libvirt/images/vm.qcow2|/srv/ddfs/templates/disk.img|; s|qcow2|raw|; s|>vm<|>bad<|' vm.xml > bad.xml
virsh -q define vm.xml > /dev/null; virsh -q define bad.xml > /dev/null
virsh start bad > bad.txt 2>&1 && fail "a writable template is refused"
grep -q "ddfs: vda of bad is the template" bad.txt || { cat bad.txt; fail "the hook says why"; }
virsh -q start vm > /dev/null || fail "a VM starts"
cmp www/disk.img /srv/ddfs/templates/disk.img
say "the hook refused a writable template, and fetched what the VM needs: $(cd /var/lib/libvirt/images && ls disk@*)"

systemctl kill --signal=KILL --kill-who=main ddfs
until_true "[ \$(systemctl show -P NRestarts ddfs) = 1 ] && systemctl is-active -q ddfs"
cmp www/disk.img /srv/ddfs/templates/disk.img
mkdir -p /etc/systemd/system/ddfs.service.d
printf '[Service]\nWatchdogSec=3\n' > /etc/systemd/system/ddfs.service.d/trial.conf
systemctl daemon-reload && systemctl restart ddfs
kill -STOP "$(systemctl show -P MainPID ddfs)"
until_true "journalctl -u ddfs | grep -q 'Failed with result .watchdog'"
until_true "systemctl is-active -q ddfs && virsh pool-refresh ddfs"
systemctl restart libvirtd
[ "$(virsh domstate vm)" = running ] || fail "the VM went on"
say "killed, and frozen under the watchdog, the daemon came back; the VM went on"

apt-get remove -y -qq ddfs > /dev/null 2>&1
grep -q " /srv/ddfs " /proc/self/mountinfo && fail "unmounted"
[ ! -e /usr/bin/ddfs ] && [ ! -e /usr/lib/ddfs ] && [ -e /etc/ddfs/ddfs.toml ] || fail "removed"
cmp www/disk.img /srv/ddfs/templates/disk.img
[ "$(virsh domstate vm)" = running ] || fail "the VM goes on without ddfs"
apt-get purge -y -qq ddfs > /dev/null 2>&1
[ ! -e /etc/ddfs/ddfs.toml ] && [ ! -e /etc/libvirt/hooks/qemu.d/ddfs ] || fail "purged"
[ -e /var/lib/ddfs/catalogue.db ] || fail "the catalogue stays"
say "removed under the running VM: catalogue and images stayed, and purging took the settings"
echo "the package is right"
