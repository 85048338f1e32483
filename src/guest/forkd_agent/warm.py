"""Everything that children would otherwise each load or compute for themselves."""
import importlib
import sys
from typing import Any

# What scripts commonly import. Shared by all children as clean pages; each costs its import time once, at boot.
COMMON = (
    'abc argparse array ast base64 bisect calendar collections concurrent.futures contextlib copy csv ctypes dataclasses '
    'datetime decimal enum errno fractions functools glob gzip hashlib heapq hmac html http.client inspect io itertools '
    'json logging math operator os pathlib pickle platform pprint queue random re secrets select shlex shutil signal '
    'socket ssl statistics string struct subprocess sys tempfile textwrap threading time traceback types typing '
    'unicodedata urllib.parse urllib.request uuid warnings weakref zlib asyncio multiprocessing unittest.mock'
).split()


def import_common() -> None:
    for name in COMMON:
        try:
            importlib.import_module(name)
        except ImportError:
            pass  # A minimal Python lacks some of them.


def import_numpy() -> Any:
    try:
        return importlib.import_module('numpy')
    except ImportError:
        return None


def first_use(numpy: Any) -> None:
    """Runs common code once: type slots, method caches and translated code are then there in every child."""
    if numpy is not None:
        values = numpy.arange(12.0).reshape(3, 4)
        for result in (values @ values.T, numpy.zeros(5), values.sum(axis=0), numpy.random.rand(3)):
            repr(result)
            result.tolist()
    repr([1, 2.5, 'x', {'k': (1, 2)}, {3}])


def version() -> str:
    return '.'.join(str(part) for part in sys.version_info[:3])
