#!/bin/sh
# install.sh LOCK: exactly the packages of a lock, into an environment at /opt/pinrec that has no pip of its own.
# The code lies in /srv/pinrec and is found by a .pth file: Triton's embedded Python ignores PYTHONPATH.
set -eu
PATH="${PATH#/opt/pinrec/bin:}" # python3 and its pip are those of the base
python=/opt/pinrec/bin/python
[ -x "$python" ] || python3 -m venv --without-pip /opt/pinrec
python3 -m pip --disable-pip-version-check --python "$python" \
    install --root-user-action=ignore --no-cache-dir --no-deps --only-binary=:all: -r "$1"
"$python" -c 'import pathlib, sysconfig
pathlib.Path(sysconfig.get_path("purelib"), "pinrec.pth").write_text("/srv/pinrec\n")'
# Folders that volumes are mounted on: a new volume takes their owner over.
install -d -o 1000 -g 1000 /data /cache
