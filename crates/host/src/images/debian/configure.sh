# Configures the packages that the host has laid out, in the order of debootstrap. What runs it adds what it needs besides.
set -e
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
