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
import types
import uuid
from typing import Any, Callable, Dict, List, NamedTuple, Optional, cast

from . import native, wire
from .legacy_random import LegacyRandom
from .output import log

RNDADDENTROPY = 0x40085203
RNDRESEEDCRNG = 0x5207
_DEFAULT_RANDOM: random.Random = getattr(random, '_inst')
HOOKS = '/etc/forkd/fork.d'
HOOK_SECONDS = 10
ENTROPY_MIN = 32
# 16 for Python's generator, 26 for OpenSSL's, 6 for the node of uuid1.
SEEDS_BYTES = 48
BOOT_ID_MARK = '{boot_id}'


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
        derived = hashlib.blake2b(entropy, person=b'generators').digest()
        self.seeds = derived[:SEEDS_BYTES]
        self.boot_id = format_uuid4(derived[SEEDS_BYTES:])


def format_uuid4(data: bytes) -> str:
    text = data.hex()
    variant = '89ab'[data[8] & 3]
    return f'{text[:8]}-{text[8:12]}-4{text[13:16]}-{variant}{text[17:20]}-{text[20:]}'


class SmallFile:
    """A file that every child rewrites. It stays open: init put it in RAM and mounted it over its public name, so that
    name always means this file, and a write neither walks a path nor copies through the overlay."""

    def __init__(self, path: str) -> None:
        self.fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o644)

    def write(self, text: str) -> None:
        data = text.encode()
        os.pwrite(self.fd, data, 0)
        os.ftruncate(self.fd, len(data))


FILES = ('hostname', 'hosts', 'machine-id', 'boot_id')


class Step(NamedTuple):
    name: str
    act: Callable[[Request], None]
    # Why it does not apply to this guest, or None.
    skip: Callable[[Request], Optional[str]] = lambda _request: None


class Identity:
    """The steps, each of which replaces one secret, and a short way through them for a sealed copy (`take_sealed`)."""

    def __init__(self, numpy: Any, agent_lang: str) -> None:
        self._random_fd = os.open('/dev/urandom', os.O_WRONLY | os.O_CLOEXEC)
        self._legacy_random = None if numpy is None else LegacyRandom(numpy)
        self._agent_lang = agent_lang
        self._hooks_found: Optional[List[str]] = None
        own = '/run/forkd/identity'
        os.makedirs(own, exist_ok=True)
        self._files = {name: SmallFile(f'{own}/{name}') for name in FILES}
        # libuuid keeps a node and a clock sequence in C, out of reach: two copies would make equal uuid1 values.
        # Without it the module uses its own node and clock, which the uuid step replaces.
        if hasattr(uuid, '_generate_time_safe'):
            setattr(uuid, '_generate_time_safe', None)
        self._steps = (
            Step('kernel_rng', lambda request: self._kernel_rng(request.kernel_seed)),
            Step('clock', lambda request: set_clock(request.clock_ns)),
            Step('hostname', lambda request: self._hostname(request.hostname)),
            Step('machine_id', lambda request: self._machine_id(request.machine_id)),
            Step('boot_id', lambda request: self._files['boot_id'].write(request.boot_id + '\n')),
            Step('mac', lambda _request: None, lambda _request: mac_kept()),
            Step('python_random', lambda request: seed_python(request.seeds)),
            Step('numpy_random', lambda _request: self._numpy_random(), lambda _request: self._no_numpy()),
            Step('uuid', lambda request: seed_uuid(request.seeds)),
            Step('openssl', lambda request: seed_openssl(request.seeds), lambda _request: no_openssl()),
            Step('tempfile', lambda _request: forget_names(), lambda _request: no_tempfile()),
            Step('node', lambda _request: None, lambda _request: self._node()),
            Step('env', lambda request: os.environ.update(request.env), no_env),
            Step('hooks', self._run_hooks, lambda _request: self._no_hooks()),
        )
        words = None if self._legacy_random is None else self._legacy_random.address
        self._native = native.load(self._random_fd, [self._files[name].fd for name in FILES], words)
        # What is left to Python of a sealed copy's way, and its answer up to the boot id and from there on.
        self._rest: Optional[List[Callable[[bytes], None]]] = None
        self._answer = (b'', b'')

    def seal(self) -> None:
        """Finds out now, once, instead of in every child, what there is to do: nothing is executed between the seal and the fork."""
        self._hooks_found = find_hooks()
        self._rest = None
        if self._native is None or self._hooks_found or not self._native.holds(self._legacy_random):
            return
        plain = cast(Request, types.SimpleNamespace(env={}))
        reasons = {step.name: step.skip(plain) for step in self._steps}
        skipped = {name: reason for name, reason in reasons.items() if reason is not None}
        done = [step.name for step in self._steps if step.name not in skipped]
        answer = wire.encode_json({'receipt': receipt(done, skipped, {}, BOOT_ID_MARK), 'exit_code': 0})
        before, after = answer.split(BOOT_ID_MARK.encode())
        self._answer = (before, after)
        own: Dict[str, Callable[[bytes], None]] = {
            'python_random': seed_python,
            'uuid': seed_uuid,
            'openssl': seed_openssl,
            'tempfile': lambda _seeds: forget_names(),
        }
        self._rest = [act for name, act in own.items() if name in done]
        if self._legacy_random is not None:
            self._legacy_random.forget_pair()

    def take_sealed(self, payload: bytes) -> Optional[bytes]:
        """The answer to a request that a sealed copy was sent, or None when `take` has to see to it: it asks for more than every
        child does, or a step failed, and then all are done again."""
        if self._rest is None:
            return None
        boot_id = self._native.take(payload)
        if boot_id is None:
            return None
        seeds = self._native.seeds()
        try:
            for act in self._rest:
                act(seeds)
        except Exception as error:
            log(f'identity: {type(error).__name__}: {error}')
            return None
        self.release()
        return self._answer[0] + boot_id + self._answer[1]

    def take(self, message: Dict[str, Any]) -> Dict[str, Any]:
        """Runs every step; returns the receipt."""
        request = Request(message)
        done: List[str] = []
        skipped: Dict[str, str] = {}
        failed: Dict[str, str] = {}
        if self._native is not None:
            self._native.forget()
        for step in self._steps:
            try:
                reason = step.skip(request)
                if reason is None:
                    step.act(request)
            except Exception as error:
                failed[step.name] = f'{type(error).__name__}: {error}'
                continue
            if reason is None:
                done.append(step.name)
            else:
                skipped[step.name] = reason
        return receipt(done, skipped, failed, request.boot_id)

    def release(self) -> None:
        """From now on anything may be executed, so a later fork without a seal must look for hooks itself."""
        self._hooks_found = None
        self._rest = None

    def _kernel_rng(self, seed: bytes) -> None:
        fcntl.ioctl(self._random_fd, RNDADDENTROPY, struct.pack('ii', len(seed) * 8, len(seed)) + seed)
        # Mixed in is not yet in use: without this the next numbers still come from the parent's key.
        fcntl.ioctl(self._random_fd, RNDRESEEDCRNG)

    def _hostname(self, name: str) -> None:
        socket.sethostname(name)
        self._files['hostname'].write(name + '\n')
        # So that a program that resolves its own name does not ask a name server.
        self._files['hosts'].write(f'127.0.0.1 localhost {name}\n::1 localhost ip6-localhost ip6-loopback\n')

    def _machine_id(self, machine_id: str) -> None:
        if len(machine_id) != 32 or not set(machine_id) <= set('0123456789abcdef'):
            raise ValueError('machine_id must be 32 lower-case hex digits')
        self._files['machine-id'].write(machine_id + '\n')

    def _no_numpy(self) -> Optional[str]:
        return 'numpy is not installed' if self._legacy_random is None else None

    def _numpy_random(self) -> None:
        # After the kernel's generator, which it reads. default_rng() takes its seed from there each time by itself.
        cast(LegacyRandom, self._legacy_random).reseed()

    def _node(self) -> Optional[str]:
        if self._agent_lang != 'node':
            return 'no node warm-up process'
        return 'the warm-up process keeps its own random state: reseed it in a hook of /etc/forkd/fork.d'

    def _no_hooks(self) -> Optional[str]:
        return None if self._hooks() else f'no executables in {HOOKS}'

    def _hooks(self) -> List[str]:
        return find_hooks() if self._hooks_found is None else self._hooks_found

    def _run_hooks(self, request: Request) -> None:
        for hook in self._hooks():
            run_hook(hook, request)


def receipt(done: List[str], skipped: Dict[str, str], failed: Dict[str, str], boot_id: str) -> Dict[str, Any]:
    return {'generation': wire.GENERATION, 'done': done, 'skipped': skipped, 'failed': failed, 'boot_id': boot_id}


def mac_kept() -> str:
    # A new address would have to be told to whoever knows the old one, and nobody else is there to take it for another's.
    if not os.path.exists('/sys/class/net/eth0'):
        return 'no network card'
    return 'the card keeps its address: every copy is alone on its segment'


# --- the generators of this process, each from its part of the seeds -------------------------------------------------


def seed_python(seeds: bytes) -> None:
    # What random.seed() does with an integer, without its looking at what else a seed may be.
    _random.Random.seed(_DEFAULT_RANDOM, int.from_bytes(seeds[:16], 'little'))
    _DEFAULT_RANDOM.gauss_next = None


def seed_openssl(seeds: bytes) -> None:
    # OpenSSL's generator notices a fork of its process, but not one of the machine.
    sys.modules['_ssl'].RAND_add(seeds[16:42], 26.0)


def no_openssl() -> Optional[str]:
    return None if '_ssl' in sys.modules else 'OpenSSL is not loaded; it will seed itself from the kernel'


def seed_uuid(seeds: bytes) -> None:
    # A random node has the multicast bit set, so that it is nobody's network card (RFC 4122).
    setattr(uuid, '_node', int.from_bytes(seeds[42:48], 'big') | 1 << 40)
    setattr(uuid, '_last_timestamp', None)


def forget_names() -> None:
    setattr(sys.modules['tempfile'], '_name_sequence', None)


def no_tempfile() -> Optional[str]:
    return None if 'tempfile' in sys.modules else 'tempfile is not loaded'


def no_env(request: Request) -> Optional[str]:
    return None if request.env else 'none given'


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
