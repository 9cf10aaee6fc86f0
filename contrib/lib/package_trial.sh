#!/bin/sh
# What contrib/package --check does in the clean system. A local server is the source: the
# system has no other mirrors.
set -eu
[ "${container-}" = ddfs-check ] || { echo "only for contrib/package --check" >&2; exit 2; }
export DEBIAN_FRONTEND=noninteractive
trap '[ $? = 0 ] || cat /tmp/daemon.log' EXIT
say() { echo "-- $*"; }
printf '#!/bin/sh\nexit 101\n' > /usr/sbin/policy-rc.d; chmod +x /usr/sbin/policy-rc.d
apt-get update -qq
apt-get install -y -qq --no-install-recommends /tmp/ddfs.deb > /tmp/apt.log 2>&1 || {
    tail -20 /tmp/apt.log
    exit 1
}
say "installed: $(ddfs --version)"
[ "$(stat -c %a /usr/bin/ddfs)" = 755 ]; getent group ddfs >/dev/null

say "the hook, for a domain that uses nothing of ours, and for another operation"
printf '<domain type="kvm"><name>a</name><devices/></domain>' | /etc/libvirt/hooks/qemu.d/ddfs a prepare begin -
/etc/libvirt/hooks/qemu.d/ddfs a started begin - < /dev/null

say "the daemon, from the installed files"
mkdir -p /images /www
printf 'mountpoint = "/srv/ddfs"\n[primary.default]\npath = "/images"\n' > /etc/ddfs/ddfs.toml
ddfs serve 2> /tmp/daemon.log & daemon=$!
n=0; until ddfs status > /tmp/status 2>&1; do
    n=$((n + 1)); [ "$n" -lt 100 ] || { cat /tmp/status /tmp/daemon.log; exit 1; }; sleep 0.1
done
head -c 3000000 /dev/urandom > /www/disk.img
(cd /www && exec python3 -m http.server --bind 127.0.0.1 8931 > /dev/null 2>&1) & server=$!
sum=$(sha256sum < /www/disk.img | cut -d' ' -f1)
n=0; until ddfs template add disk http://127.0.0.1:8931/disk.img --checksum "sha256:$sum" > /tmp/add 2>&1; do
    n=$((n + 1)); [ "$n" -lt 50 ] || { cat /tmp/add; exit 1; }; sleep 0.1
done
cmp /srv/ddfs/templates/disk.img /www/disk.img
say "fetched through the mount: $(ls /images)"
printf '<domain type="kvm"><name>a</name><devices><disk type="file" device="disk"><source file="/srv/ddfs/templates/disk.img"/><target dev="vda"/></disk></devices></domain>' > /tmp/domain.xml
if /etc/libvirt/hooks/qemu.d/ddfs a prepare begin - < /tmp/domain.xml 2> /tmp/refused; then
    echo "the hook allows a writable template"; exit 1
fi
say "the hook asks the daemon: $(head -c 150 /tmp/refused)"
kill "$server"; kill "$daemon"; wait "$daemon"
! grep -q " /srv/ddfs " /proc/self/mountinfo

apt-get remove -y -qq ddfs > /dev/null 2>&1
[ ! -e /usr/bin/ddfs ] && [ ! -e /usr/lib/ddfs ] && [ -e /etc/ddfs/ddfs.toml ] && [ -n "$(ls /images)" ]
apt-get purge -y -qq ddfs > /dev/null 2>&1
[ ! -e /etc/ddfs/ddfs.toml ] && [ ! -e /etc/libvirt/hooks/qemu.d/ddfs ] && [ -e /var/lib/ddfs/catalogue.db ]
say "removed: settings, catalogue and images stayed, and purging took the settings"
