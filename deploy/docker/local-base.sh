#!/bin/sh
# local-base.sh NAME: a base image from Debian's packages alone, for machines that reach no image registry.
# Needs root, debootstrap and podman; takes about two minutes. The images build on it with BASE=NAME.
set -eu
name="${1:-localhost/pinrec-base:bookworm}"
root="$(mktemp -d)"
trap 'rm -rf "$root"' EXIT
debootstrap --variant=minbase --include=ca-certificates,libpython3.11,python3,python3-pip,python3-venv bookworm "$root"
rm -rf "$root"/var/cache/apt/archives/*.deb "$root"/var/lib/apt/lists/*
tar -C "$root" --one-file-system -c . | podman import --change 'CMD ["/bin/sh"]' - "$name"
