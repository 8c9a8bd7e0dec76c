# Sourced by the launchers: find or create a Python environment, install requirements.txt, and set $PYTHON.
# An active environment (venv, conda) is used, and missing packages are installed there. Otherwise .venv is created here.
if [ -n "${VIRTUAL_ENV:-}" ]; then
  PYTHON="$VIRTUAL_ENV/bin/python"
elif [ -n "${CONDA_PREFIX:-}" ]; then
  PYTHON="$CONDA_PREFIX/bin/python"
else
  if ! .venv/bin/python -m pip --version >/dev/null 2>&1; then # missing or incomplete
    echo "Creating the environment .venv ..."
    if ! python3 -m venv --clear .venv; then
      echo "error: python3 -m venv failed (Debian: apt-get install python3-venv); or activate your own environment" >&2
      exit 2
    fi
  fi
  PYTHON="$PWD/.venv/bin/python"
fi
MARK="$("$PYTHON" -c 'import sys; print(sys.prefix)')/.gof-requirements"
if ! cmp -s requirements.txt "$MARK"; then
  if ! "$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 10))'; then
    echo "error: $PYTHON is older than Python 3.10; activate a newer one" >&2
    exit 2
  fi
  echo "Installing requirements.txt (PyTorch is large: a few minutes on a new machine) ..."
  "$PYTHON" -m pip install --quiet --disable-pip-version-check -r requirements.txt
  # pyrender renders meshes through EGL. Without it, render_meshimg.py uses ray casting and reports it.
  if command -v ldconfig >/dev/null && ! ldconfig -p | grep -q libEGL.so.1; then
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
      echo "Installing libEGL to render meshes ..."
      (timeout 120 apt-get update -qq && timeout 120 apt-get install -y -qq libegl1 libgl1-mesa-dri) >/dev/null 2>&1 ||
        echo "Note: installing libEGL failed; meshes will be rendered by ray casting."
    else
      echo "Note: libEGL is not installed (Debian: libegl1 libgl1-mesa-dri); meshes will be rendered by ray casting."
    fi
  fi
  cp requirements.txt "$MARK"
fi
export PYOPENGL_PLATFORM="${PYOPENGL_PLATFORM:-egl}"
