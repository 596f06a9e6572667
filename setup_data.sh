#!/usr/bin/env bash
# Fetches an official data set, or takes archives that are here already, and prepares it for training:
#   ./setup_data.sh cifar10                                 downloads; the same command goes on where it stopped
#   ./setup_data.sh imagenet32 --from ~/Downloads           a folder with train_32x32.tar and valid_32x32.tar
#   ./setup_data.sh ffhq1024 --from images1024x1024 --to /scratch/data
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
python=$here/.venv/bin/python
if [ ! -x "$python" ]; then
    python=python3
    "$python" -c 'import importlib.util as u, sys; sys.exit(not (u.find_spec("vdvae") and u.find_spec("torch")))' || {
        make --directory "$here" .venv/.installed >&2
        python=$here/.venv/bin/python
    }
fi
exec "$python" "$here/scripts/prepare_data.py" "$@"
