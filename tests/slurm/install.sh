#!/bin/sh
# Installs missing programs of the test cluster from Debian's packages. Starts nothing.
set -eu
PATH="$PATH:/usr/sbin:/sbin"
missing=""
for program in slurmctld slurmd slurmdbd sbatch munged mariadbd setpriv; do
  command -v "$program" >/dev/null || missing="$missing $program"
done
[ -n "$missing" ] || exit 0
echo "missing:$missing"
if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
  echo "install SLURM (slurmctld slurmd slurmdbd slurm-client), munge and mariadb-server, then call this again" >&2
  exit 1
fi
# Packages start their services on installation; this file prevents it and is removed afterwards.
policy=/usr/sbin/policy-rc.d
if [ ! -e "$policy" ]; then
  printf '#!/bin/sh\nexit 101\n' > "$policy"
  chmod +x "$policy"
  trap 'rm -f "$policy"' EXIT
fi
export DEBIAN_FRONTEND=noninteractive
packages="slurmctld slurmd slurmdbd slurm-client munge mariadb-server"
# shellcheck disable=SC2086
apt-get install -y --no-install-recommends $packages ||
  { apt-get update && apt-get install -y --no-install-recommends $packages; }
