"""The `fork` action: makes a copy of the guest its own machine, and says in a receipt what was done.

A copy has the parent's every secret: kernel and interpreter random states, clock, names. Each step replaces one of them.
A step that fails leaves the copy unreleased. The steps may run any number of times: the host rehearses on the parent.
"""
import binascii
import fcntl
import hashlib
import os
import random
import _random
import socket
import struct
import sys
import time
import uuid
from typing import Any, Callable, Dict, List, Optional, Tuple

from . import wire
from .legacy_random import LegacyRandom
from .output import log

RNDADDENTROPY = 0x40085203
RNDRESEEDCRNG = 0x5207
_DEFAULT_RANDOM: random.Random = getattr(random, '_inst')
HOOKS = '/etc/forkd/fork.d'
HOOK_SECONDS = 10
ENTROPY_MIN = 32


class Request:
    """A checked `fork` request, with a seed for each generator: knowing one tells nothing about another."""

    def __init__(self, request: Dict[str, Any]) -> None:
        entropy = binascii.a2b_base64(request['entropy'])
        if len(entropy) < ENTROPY_MIN:
            raise ValueError(f'entropy must be at least {ENTROPY_MIN} bytes, not {len(entropy)}')
        self.clock_ns = int(request['clock_ns'])
        self.hostname: str = request['hostname']
        self.machine_id: str = request['machine_id']
        self.index = int(request['index'])
        self.env: Dict[str, str] = request.get('env') or {}
        self.kernel_seed = hashlib.blake2b(entropy, person=b'kernel').digest()
        seeds = hashlib.blake2b(entropy, person=b'generators').digest()
        self.python_seed, self.openssl_seed = seeds[:16], seeds[16:42]
        self.uuid_node = seeds[42:48]
        self.boot_id = format_uuid4(seeds[48:])


def format_uuid4(data: bytes) -> str:
    text = data.hex()
    variant = '89ab'[data[8] & 3]
    return f'{text[:8]}-{text[8:12]}-4{text[13:16]}-{variant}{text[17:20]}-{text[20:]}'


class SmallFile:
    """A file that every child rewrites. It stays open: init put it in RAM and mounted it over its public name, so that
    name always means this file, and a write neither walks a path nor copies through the overlay."""

    def __init__(self, path: str) -> None:
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o644)
        self._length = os.fstat(self._fd).st_size

    def write(self, text: str) -> None:
        data = text.encode()
        os.pwrite(self._fd, data, 0)
        if len(data) != self._length:
            os.ftruncate(self._fd, len(data))
            self._length = len(data)


Step = Callable[[Request], Optional[str]]


class Identity:
    """The steps. Each returns None when it is done, or the reason why it does not apply to this guest."""

    def __init__(self, numpy: Any, agent_lang: str) -> None:
        self._random_fd = os.open('/dev/urandom', os.O_WRONLY | os.O_CLOEXEC)
        self._legacy_random = None if numpy is None else LegacyRandom(numpy)
        self._agent_lang = agent_lang
        self._hooks_found: Optional[List[str]] = None
        own = '/run/forkd/identity'
        os.makedirs(own, exist_ok=True)
        self._files = {name: SmallFile(f'{own}/{name}') for name in ('hostname', 'hosts', 'machine-id', 'boot_id')}
        # libuuid keeps a node and a clock sequence in C, out of reach: two copies would make equal uuid1 values.
        # Without it the module uses its own node and clock, which the uuid step replaces.
        if hasattr(uuid, '_generate_time_safe'):
            setattr(uuid, '_generate_time_safe', None)
        self._steps: Tuple[Tuple[str, Step], ...] = (
            ('kernel_rng', self._kernel_rng),
            ('clock', self._clock),
            ('hostname', self._hostname),
            ('machine_id', self._machine_id),
            ('boot_id', self._boot_id),
            ('python_random', self._python_random),
            ('numpy_random', self._numpy_random),
            ('uuid', self._uuid),
            ('openssl', self._openssl),
            ('tempfile', self._tempfile),
            ('node', self._node),
            ('env', self._env),
            ('hooks', self._hooks),
        )

    def seal(self) -> None:
        """Looks for hooks now, once, instead of in every child: nothing is executed between the seal and the fork."""
        self._hooks_found = find_hooks()

    def take(self, message: Dict[str, Any]) -> Dict[str, Any]:
        """Runs every step; returns the receipt."""
        request = Request(message)
        done: List[str] = []
        skipped: Dict[str, str] = {}
        failed: Dict[str, str] = {}
        for name, step in self._steps:
            try:
                reason = step(request)
            except Exception as error:
                failed[name] = f'{type(error).__name__}: {error}'
                continue
            if reason is None:
                done.append(name)
            else:
                skipped[name] = reason
        return {
            'generation': wire.GENERATION,
            'done': done,
            'skipped': skipped,
            'failed': failed,
            'boot_id': request.boot_id,
        }

    def release(self) -> None:
        """From now on anything may be executed, so a later fork without a seal must look for hooks itself."""
        self._hooks_found = None

    def _kernel_rng(self, request: Request) -> None:
        seed = request.kernel_seed
        fcntl.ioctl(self._random_fd, RNDADDENTROPY, struct.pack('ii', len(seed) * 8, len(seed)) + seed)
        # Mixed in is not yet in use: without this the next numbers still come from the parent's key.
        fcntl.ioctl(self._random_fd, RNDRESEEDCRNG)

    def _clock(self, request: Request) -> None:
        set_clock(request.clock_ns)

    def _hostname(self, request: Request) -> None:
        socket.sethostname(request.hostname)
        self._files['hostname'].write(request.hostname + '\n')
        # So that a program that resolves its own name does not ask a name server.
        hosts = f'127.0.0.1 localhost {request.hostname}\n::1 localhost ip6-localhost ip6-loopback\n'
        self._files['hosts'].write(hosts)

    def _machine_id(self, request: Request) -> None:
        if len(request.machine_id) != 32 or not set(request.machine_id) <= set('0123456789abcdef'):
            raise ValueError('machine_id must be 32 lower-case hex digits')
        self._files['machine-id'].write(request.machine_id + '\n')

    def _boot_id(self, request: Request) -> None:
        self._files['boot_id'].write(request.boot_id + '\n')

    def _python_random(self, request: Request) -> None:
        # What random.seed() does with an integer, without its looking at what else a seed may be.
        _random.Random.seed(_DEFAULT_RANDOM, int.from_bytes(request.python_seed, 'little'))
        _DEFAULT_RANDOM.gauss_next = None

    def _numpy_random(self, _request: Request) -> Optional[str]:
        if self._legacy_random is None:
            return 'numpy is not installed'
        # After the kernel's generator, which it reads. default_rng() takes its seed from there each time by itself.
        self._legacy_random.reseed()
        return None

    def _uuid(self, request: Request) -> None:
        # A random node has the multicast bit set, so that it is nobody's network card (RFC 4122).
        setattr(uuid, '_node', int.from_bytes(request.uuid_node, 'big') | 1 << 40)
        setattr(uuid, '_last_timestamp', None)

    def _openssl(self, request: Request) -> Optional[str]:
        ssl = sys.modules.get('_ssl')
        if ssl is None:
            return 'OpenSSL is not loaded; it will seed itself from the kernel'
        # OpenSSL's generator notices a fork of its process, but not one of the machine.
        ssl.RAND_add(request.openssl_seed, float(len(request.openssl_seed)))
        return None

    def _tempfile(self, _request: Request) -> Optional[str]:
        tempfile = sys.modules.get('tempfile')
        if tempfile is None:
            return 'tempfile is not loaded'
        setattr(tempfile, '_name_sequence', None)
        return None

    def _node(self, _request: Request) -> Optional[str]:
        if self._agent_lang != 'node':
            return 'no node warm-up process'
        return 'the warm-up process keeps its own random state: reseed it in a hook of /etc/forkd/fork.d'

    def _env(self, request: Request) -> Optional[str]:
        if not request.env:
            return 'none given'
        for name, value in request.env.items():
            os.environ[name] = value
        return None

    def _hooks(self, request: Request) -> Optional[str]:
        hooks = find_hooks() if self._hooks_found is None else self._hooks_found
        if not hooks:
            return f'no executables in {HOOKS}'
        for hook in hooks:
            run_hook(hook, request)
        return None


def set_clock(clock_ns: Any) -> None:
    time.clock_settime_ns(time.CLOCK_REALTIME, int(clock_ns))


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
