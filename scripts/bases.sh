#!/usr/bin/env bash
# Makes two bases for the image out of Debian's packages, for machines that reach no registry of
# images: build.tar (Python, venv, a shell) and base.tar (Python alone: no shell, no pip), each the
# root of a file system.
# Guarantee: changes nothing outside FOLDER; what is there already is kept. Needs mmdebstrap and, as
# it unpacks files of many owners, root.
# Usage: scripts/bases.sh FOLDER
set -euo pipefail

folder=$(mkdir -p "$1" && cd "$1" && pwd)
suite=bookworm
python=3.11 # the suite's
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# Run on the tree: links that packages make when they are configured, which none is here.
cat >"$work/finish.sh" <<'END'
#!/bin/sh
set -eu
ln -sfn "python$1" "$2/usr/bin/python3"
mkdir -p "$2/tmp" "$2/etc/ssl/certs" "$2/proc" "$2/sys" "$2/dev" "$2/run" "$2/root"
chmod 1777 "$2/tmp"
printf 'root:x:0:0:root:/root:/sbin/nologin\nnonroot:x:65532:65532:nonroot:/tmp:/sbin/nologin\n' \
  >"$2/etc/passwd"
printf 'root:x:0:\nnonroot:x:65532:\n' >"$2/etc/group"
cd "$2"
rm -rf usr/share/doc usr/share/locale usr/share/man usr/share/info
rm -f usr/bin/dpkg* bin/tar usr/sbin/dpkg* # brought along for what configures packages
# Who this machine trusts, as a mirror of packages may be known to it alone.
if [ -r /etc/ssl/certs/ca-certificates.crt ]; then
  cp /etc/ssl/certs/ca-certificates.crt "$2/etc/ssl/certs/ca-certificates.crt"
fi
END

make() { # make NAME PACKAGES
  [[ $folder/$1 -nt ${BASH_SOURCE[0]} ]] && return
  mmdebstrap --mode=root --variant=extract --include="$2" \
    --extract-hook="sh $work/finish.sh $python \"\$1\"" "$suite" "$work/$1"
  mv "$work/$1" "$folder/$1"
}

make base.tar "python$python,libstdc++6"
make build.tar "python$python,libstdc++6,python$python-venv,dash,coreutils,findutils,sed"
