# Sourced by the launchers: finds or makes a Python environment with requirements.txt in it, and names it in $PYTHON.
# An active environment (venv, conda) is used as it is and gets what it lacks; otherwise .venv is made here.
if [ -n "${VIRTUAL_ENV:-}" ]; then
  PYTHON="$VIRTUAL_ENV/bin/python"
elif [ -n "${CONDA_PREFIX:-}" ]; then
  PYTHON="$CONDA_PREFIX/bin/python"
else
  [ -x .venv/bin/python ] || { echo "Making the environment .venv ..."; python3 -m venv .venv; }
  PYTHON="$PWD/.venv/bin/python"
fi
MARK="$("$PYTHON" -c 'import sys; print(sys.prefix)')/.gof-requirements"
if ! cmp -s requirements.txt "$MARK"; then
  echo "Installing what requirements.txt names (PyTorch is large: a few minutes on a fresh machine) ..."
  "$PYTHON" -m pip install --quiet --disable-pip-version-check -r requirements.txt
  cp requirements.txt "$MARK"
fi
# pyrender draws meshes through EGL; without it render_meshimg.py casts rays instead and says so.
if command -v ldconfig >/dev/null && ! ldconfig -p | grep -q libEGL.so.1; then
  if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    (apt-get update -qq && apt-get install -y -qq libegl1 libgl1-mesa-dri) >/dev/null 2>&1 || true
  else
    echo "Note: libEGL is not installed (Debian: libegl1 libgl1-mesa-dri); meshes will be pictured by ray casting."
  fi
fi
export PYOPENGL_PLATFORM="${PYOPENGL_PLATFORM:-egl}"
