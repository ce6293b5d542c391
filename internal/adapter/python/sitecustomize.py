"""What gapless has Python import at its start, in a process that may become a uvicorn server.

It waits for the module uvicorn.server to be imported, and has _gapless_uvicorn.py look at it then. It takes itself out of
sys.path, and hands over to the sitecustomize that it hides. It keeps to a syntax that every Python reads: a program that
is not meant must not see an error.
"""
import os
import sys

_HERE = os.path.dirname(__file__)


class _Loader(object):
    """Loads a module as its own loader does, and has it looked at before anybody else sees it."""

    def __init__(self, loader):
        self._loader = loader

    def __getattr__(self, name):
        return getattr(self._loader, name)

    def create_module(self, spec):
        return self._loader.create_module(spec)

    def exec_module(self, module):
        # Whoever asks the module for its loader later is to find the real one.
        module.__spec__.loader = module.__loader__ = self._loader
        self._loader.exec_module(module)
        try:
            _install(module)
        except Exception:  # gapless tells that it has heard nothing
            pass


def _install(module):
    """Runs the adapter. Its modules are no files in a folder that Python searches, and leave no bytecode there."""
    import types

    for name in ("_gapless_wire", "_gapless_drain", "_gapless_uvicorn"):
        path = os.path.join(_HERE, name + ".py")
        with open(path) as f:
            code = compile(f.read(), path, "exec")
        own = sys.modules[name] = types.ModuleType(name)
        own.__file__ = path
        exec(code, own.__dict__)
    own.install(module, _HERE)


class _Finder(object):
    """Finds one module, with the help of those that would have found it."""

    def find_spec(self, name, path=None, target=None):
        if name != "uvicorn.server":
            return None
        for finder in sys.meta_path:
            find = None if finder is self else getattr(finder, "find_spec", None)
            spec = find(name, path, target) if find else None
            if spec is not None:
                if hasattr(spec.loader, "exec_module"):
                    spec.loader = _Loader(spec.loader)
                return spec
        return None


def _chain():
    import importlib.machinery
    import importlib.util

    spec = importlib.machinery.PathFinder.find_spec("sitecustomize", sys.path)
    if spec is not None and spec.loader is not None:
        module = importlib.util.module_from_spec(spec)
        sys.modules["sitecustomize"] = module
        spec.loader.exec_module(module)


sys.path[:] = [p for p in sys.path if p != _HERE]
if sys.version_info >= (3, 8) and "GAPLESS_CHANNEL" in os.environ:
    sys.meta_path.insert(0, _Finder())
if sys.version_info >= (3, 4):
    _chain()  # last: what it raises is for Python to tell, as ever
