# Makes the settings of the full Debian that need the packages' own tools, and clears away what is only the build's.
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
