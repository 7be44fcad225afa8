"""Import of the modules that a user names on the command line, such as `py:module:factory`."""

import importlib
import os
import sys
from importlib.machinery import PathFinder
from importlib.util import module_from_spec
from types import ModuleType


def import_user_module(name: str) -> ModuleType:
    """Import a module; a file of the working directory comes before a loaded or installed module.

    The module is run: use it with code that you trust. A loaded module of the same name stays loaded.
    """
    directory = os.getcwd()
    if directory not in sys.path:
        sys.path.insert(0, directory)
    importlib.invalidate_caches()  # the file may be younger than the last look at its directory
    top, _, rest = name.partition(".")
    spec = PathFinder.find_spec(top, [directory])
    loaded = sys.modules.get(top)
    taken = loaded is not None and spec is not None and getattr(loaded, "__file__", None) != spec.origin
    if rest or not taken or spec is None or spec.loader is None:
        return importlib.import_module(name)
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
