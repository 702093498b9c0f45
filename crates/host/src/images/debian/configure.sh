#!/bin/sh
# Runs once, as the only program of the builder VM, with the new disk as its root: configures the packages that
# the host has laid out, in the order of debootstrap, and makes the settings that need the packages' own tools.
set -e
export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LC_ALL=C LANG=C
export DEBIAN_FRONTEND=noninteractive DEBCONF_NONINTERACTIVE_SEEN=true DEBCONF_NOWARNINGS=yes
export SYSTEMD_OFFLINE=1 SYSTEMD_LOG_LEVEL=err
cd /

# dpkg writes its database after each package; nobody else needs it to be on the disk before the end.
dpkg="dpkg --force-unsafe-io"

# It looks after what older versions left behind, slowly. There are no older versions: let it do nothing for once.
helper=/usr/bin/dpkg-maintscript-helper
mv $helper $helper.kept
printf '#!/bin/sh\nexit 0\n' > $helper
chmod 755 $helper

# The only script before unpacking that does more than look after upgrades: it makes /etc/passwd and /etc/group.
/var/lib/dpkg/info/base-passwd.preinst install
[ -e /etc/localtime ] || ln -s /usr/share/zoneinfo/Etc/UTC /etc/localtime
[ -e /usr/bin/awk ] || ln -s mawk /usr/bin/awk
for package in base-passwd base-files dpkg libc6 perl-base mawk debconf; do
    $dpkg --force-depends --configure $package
done
$dpkg --configure -a
mv $helper.kept $helper

depmod "$(ls /lib/modules)"

# Root has no password: who reaches a console of this VM owns it. Change it with passwd.
sed -i 's/^root:[^:]*:/root::/' /etc/shadow
systemctl set-default multi-user.target
# Its network card asks for an address.
systemctl enable systemd-networkd.service
# Nobody waits for it at boot: a VM may have no card.
systemctl disable systemd-networkd-wait-online.service || :
# What a new VM should not spend its time on.
for unit in apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer e2scrub_all.timer e2scrub_reap.service \
    fstrim.timer getty@tty1.service; do
    systemctl disable $unit || :
done
# The virtio console shows the same as the serial port: one login prompt is enough. The others are for hardware and
# for kernel work; whoever needs one unmasks it.
systemctl mask serial-getty@hvc0.service sys-kernel-debug.mount sys-kernel-tracing.mount systemd-pstore.service \
    modprobe@drm.service modprobe@efi_pstore.service modprobe@dm_mod.service modprobe@loop.service

: > /etc/machine-id
rm -f /usr/sbin/policy-rc.d /viv-configure /var/lib/dbus/machine-id /var/log/dpkg.log /var/log/bootstrap.log \
    /var/cache/debconf/*-old /var/lib/dpkg/*-old /var/cache/ldconfig/aux-cache
sync
