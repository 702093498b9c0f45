# Removes what differs from build to build and nobody needs: identities, logs, caches, what was only begun.
cd /
if [ -s /etc/machine-id ]; then : > /etc/machine-id; fi
rm -f /var/lib/dbus/machine-id /var/lib/systemd/random-seed /var/lib/dpkg/*-old /var/lib/dpkg/lock* /var/lib/dpkg/triggers/Lock \
    /var/cache/debconf/*-old /var/cache/ldconfig/aux-cache /etc/.pwd.lock /var/lib/apt/extended_states.* \
    /etc/passwd- /etc/group- /etc/shadow- /etc/gshadow- /etc/subuid- /etc/subgid-
rm -rf /var/lib/apt/lists/* /var/cache/apt/*.bin /var/cache/apt/archives/*.deb /var/cache/apt/archives/partial/* /var/cache/apt/archives/lock \
    /var/log/apt /var/log/dpkg.log /var/log/alternatives.log /var/log/bootstrap.log /var/log/fontconfig.log /var/log/journal
find /var/log -type f -size +0 -exec truncate -s 0 {} +
find /tmp /var/tmp /run -xdev -mindepth 1 -maxdepth 1 ! -name lock -exec rm -rf {} +
sync
