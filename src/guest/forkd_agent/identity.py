"""The `fork` action: makes a copy of the guest its own machine, and says in a receipt what was done.

A copy has the parent's every secret: kernel and interpreter random states, clock, names. Each step replaces one of them.
A step that fails leaves the copy unreleased. The steps may run any number of times: the host rehearses on the parent.
"""
import base64
import fcntl
import hashlib
import os
import random
import socket
import struct
import sys
import time
import uuid
from typing import Any, Callable, Dict, List, Optional

from . import wire
from .output import log

RNDADDENTROPY = 0x40085203
RNDRESEEDCRNG = 0x5207
BOOT_ID = '/run/forkd/boot_id'
HOOKS = '/etc/forkd/fork.d'
HOOK_SECONDS = 10
ENTROPY_MIN = 32


class NotApplicable(Exception):
    """The step has nothing to do in this guest; the message is the reason."""


class Request:
    """A checked `fork` request."""

    def __init__(self, request: Dict[str, Any]) -> None:
        self.entropy = base64.b64decode(request['entropy'], validate=True)
        if len(self.entropy) < ENTROPY_MIN:
            raise ValueError(f'entropy must be at least {ENTROPY_MIN} bytes, not {len(self.entropy)}')
        self.clock_ns = int(request['clock_ns'])
        self.hostname: str = request['hostname']
        self.machine_id: str = request['machine_id']
        self.index = int(request['index'])
        self.env: Dict[str, str] = request.get('env') or {}
        self.boot_id = str(uuid.UUID(bytes=self.derive('boot_id', 16), version=4))

    def derive(self, purpose: str, length: int) -> bytes:
        """Bytes for one purpose: knowing those of one generator tells nothing about another's."""
        return hashlib.blake2b(self.entropy, digest_size=length, person=purpose.encode()).digest()


class Identity:
    def __init__(self, numpy: Any, agent_lang: str) -> None:
        self._random_fd = os.open('/dev/urandom', os.O_WRONLY | os.O_CLOEXEC)
        self._numpy = numpy
        self._agent_lang = agent_lang
        # libuuid keeps a node and a clock sequence in C, out of reach: two copies would make equal uuid1 values.
        # Without it the module uses its own node and clock, which the uuid step replaces.
        if hasattr(uuid, '_generate_time_safe'):
            setattr(uuid, '_generate_time_safe', None)
        self._steps: Dict[str, Callable[[Request], None]] = {
            'kernel_rng': self._kernel_rng,
            'clock': self._clock,
            'hostname': self._hostname,
            'machine_id': self._machine_id,
            'boot_id': self._boot_id,
            'python_random': self._python_random,
            'numpy_random': self._numpy_random,
            'uuid': self._uuid,
            'openssl': self._openssl,
            'tempfile': self._tempfile,
            'node': self._node,
            'env': self._env,
            'hooks': self._hooks,
        }

    def take(self, message: Dict[str, Any]) -> Dict[str, Any]:
        """Runs every step; returns the receipt."""
        request = Request(message)
        done: List[str] = []
        skipped: Dict[str, str] = {}
        failed: Dict[str, str] = {}
        for name, step in self._steps.items():
            try:
                step(request)
                done.append(name)
            except NotApplicable as reason:
                skipped[name] = str(reason)
            except Exception as error:
                failed[name] = f'{type(error).__name__}: {error}'
        return {
            'generation': wire.GENERATION,
            'done': done,
            'skipped': skipped,
            'failed': failed,
            'boot_id': request.boot_id,
        }

    def _kernel_rng(self, request: Request) -> None:
        seed = request.derive('kernel', 64)
        fcntl.ioctl(self._random_fd, RNDADDENTROPY, struct.pack('ii', len(seed) * 8, len(seed)) + seed)
        # Mixed in is not yet in use: without this the next numbers still come from the parent's key.
        fcntl.ioctl(self._random_fd, RNDRESEEDCRNG)

    def _clock(self, request: Request) -> None:
        time.clock_settime_ns(time.CLOCK_REALTIME, request.clock_ns)

    def _hostname(self, request: Request) -> None:
        socket.sethostname(request.hostname)
        write_file('/etc/hostname', request.hostname + '\n')
        # So that a program that resolves its own name does not ask a name server.
        write_file('/etc/hosts', f'127.0.0.1 localhost {request.hostname}\n::1 localhost ip6-localhost ip6-loopback\n')

    def _machine_id(self, request: Request) -> None:
        if len(request.machine_id) != 32 or not set(request.machine_id) <= set('0123456789abcdef'):
            raise ValueError('machine_id must be 32 lower-case hex digits')
        write_file('/etc/machine-id', request.machine_id + '\n')

    def _boot_id(self, request: Request) -> None:
        # init mounted this file over /proc/sys/kernel/random/boot_id.
        write_file(BOOT_ID, request.boot_id + '\n')

    def _python_random(self, request: Request) -> None:
        random.seed(int.from_bytes(request.derive('random', 32), 'little'))

    def _numpy_random(self, request: Request) -> None:
        if self._numpy is None:
            raise NotApplicable('numpy is not installed')
        # The legacy generator behind numpy.random.*. default_rng() takes its seed from the kernel each time.
        self._numpy.random.seed(struct.unpack('<8I', request.derive('numpy', 32)))

    def _uuid(self, request: Request) -> None:
        # A random node has the multicast bit set, so that it is nobody's network card (RFC 4122).
        setattr(uuid, '_node', int.from_bytes(request.derive('uuid', 6), 'big') | 1 << 40)
        setattr(uuid, '_last_timestamp', None)

    def _openssl(self, request: Request) -> None:
        ssl = sys.modules.get('_ssl')
        if ssl is None:
            raise NotApplicable('OpenSSL is not loaded; it will seed itself from the kernel')
        # OpenSSL's generator notices a fork of its process, but not one of the machine.
        ssl.RAND_add(request.derive('openssl', 48), 48.0)

    def _tempfile(self, _request: Request) -> None:
        tempfile = sys.modules.get('tempfile')
        if tempfile is None:
            raise NotApplicable('tempfile is not loaded')
        setattr(tempfile, '_name_sequence', None)

    def _node(self, _request: Request) -> None:
        if self._agent_lang != 'node':
            raise NotApplicable('no node warm-up process')
        raise NotApplicable("the warm-up process keeps its own random state; reseed it in a hook of /etc/forkd/fork.d")

    def _env(self, request: Request) -> None:
        if not request.env:
            raise NotApplicable('none given')
        for name, value in request.env.items():
            os.environ[name] = value

    def _hooks(self, request: Request) -> None:
        hooks = find_hooks()
        if not hooks:
            raise NotApplicable(f'no executables in {HOOKS}')
        for hook in hooks:
            run_hook(hook, request)


def write_file(path: str, text: str) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)


def find_hooks() -> List[str]:
    try:
        names = sorted(os.listdir(HOOKS))
    except (FileNotFoundError, NotADirectoryError):
        return []
    paths = [f'{HOOKS}/{name}' for name in names if not name.startswith('.')]
    return [path for path in paths if os.path.isfile(path) and os.access(path, os.X_OK)]


def run_hook(hook: str, request: Request) -> None:
    import subprocess

    env = {
        **os.environ,
        'FORKD_INDEX': str(request.index),
        'FORKD_HOSTNAME': request.hostname,
        'FORKD_MACHINE_ID': request.machine_id,
        'FORKD_BOOT_ID': request.boot_id,
    }
    result = subprocess.run([hook], env=env, stdin=subprocess.DEVNULL, capture_output=True, timeout=HOOK_SECONDS)
    for line in result.stderr.decode('utf-8', 'replace').splitlines():
        log(f'{os.path.basename(hook)}: {line}')
    if result.returncode != 0:
        raise RuntimeError(f'{hook} ended with status {result.returncode}')


def failure(receipt: Dict[str, Any]) -> Optional[str]:
    """The `error` of a receipt with failed steps."""
    if not receipt['failed']:
        return None
    return 'IdentityFailed: ' + '; '.join(f'{step}: {reason}' for step, reason in receipt['failed'].items())
