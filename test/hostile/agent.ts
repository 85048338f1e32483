/**
 * An agent of a hostile guest's own making. Code that is evaluated runs in the agent, which is the first process and holds the port: it
 * puts this program in its own place.
 */
const PROGRAM = String.raw`
import io, json, os, random, struct, sys, tarfile, threading
port, how = int(sys.argv[1]), sys.argv[2]
HELLO, REQUEST, REPLY, OPENED, DATA, CREDIT, END = range(7)

def frame(kind, ident, payload=b'', length=None):
    return struct.pack('<HBBII', 0x4B46, kind, 0, ident, len(payload) if length is None else length) + payload

def send(data):
    view = memoryview(data)
    while view: view = view[os.write(port, view):]

def take(count):
    data = b''
    while len(data) < count:
        part = os.read(port, count - len(data))
        # Nothing is there at all while nobody holds the other end.
        if not part: os._exit(9)
        data += part
    return data

def requests():
    while True:
        _, kind, _, ident, length = struct.unpack('<HBBII', take(12))
        payload = take(length)
        if kind == REQUEST: yield ident, json.loads(payload)

def answer(ident, body): send(frame(REPLY, ident, json.dumps(body).encode()))

def flood(data):
    while True: send(data)

def unsolicited(): flood(frame(REPLY, 77, b'{"exit_code":0}') * 3000)
def nothing(): flood(frame(DATA, 5) * 5000)
def hellos(): flood(frame(HELLO, 0, b'{"generation":2}') * 3000)
def streams(): flood(b''.join(frame(kind, ident, b'\x01xyz') for ident in range(1000) for kind in (OPENED, DATA, CREDIT, END)))
def cut(): send(frame(REPLY, 1, b'{"a":', 1000)); threading.Event().wait()
def fuzz():
    random.seed(int(sys.argv[3]))
    data = bytearray(b''.join(frame(random.randrange(9), random.randrange(2000), random.randbytes(random.randrange(60))) for _ in range(2000)))
    # Headers that are right, and then one that is not.
    for _ in range(50): data[random.randrange(len(data))] ^= 1 << random.randrange(8)
    flood(bytes(data))

def huge():
    for ident, _ in requests():
        send(frame(REPLY, ident, b'{"x":"' + b'y' * 100000, 0xFFFFFFF0))
        flood(b'z' * 1000000)
def values():
    for ident, _ in requests(): send(frame(REPLY, ident, b'{"result":"1","x":[' + b'[],' * 20000000 + b'0]}'))
def deep():
    for ident, _ in requests(): send(frame(REPLY, ident, b'{"x":' + b'[' * 10000000))
def lies():
    for ident, _ in requests(): answer(ident, {'stdout': {}, 'stderr': 7, 'exit_code': 'no', 'result': [], 'pong': 1, 'entries': 5})
LARGE = b'{"exit_code":0,"stdout":"' + b'y' * 3000000
def stops():
    for ident, _ in requests(): send(frame(REPLY, ident, LARGE))
def garbled():
    for ident, _ in requests(): send(frame(REPLY, ident, LARGE + b'\xff\n"}'))
def liesAtLength():
    for ident, _ in requests(): send(frame(REPLY, ident, LARGE + b'","result":[]}'))
def half():
    for ident, _ in requests(): send(frame(REPLY, ident, LARGE, 5000000))
def spills():
    for ident, _ in requests():
        send(frame(OPENED, ident, b'{}'))
        flood(frame(DATA, ident, b'\x01' + b'x' * 30000) * 8)
def crumbs():
    for ident, _ in requests():
        send(frame(OPENED, ident, b'{}') + (frame(DATA, ident, b'\x01x') + frame(REPLY, 9, b' ' * 40000)) * 200)
        send(frame(DATA, ident, b'\x01y') * 100000 + frame(END, ident, b'\x01') * 1000 + frame(DATA, ident) * 1000 + frame(REPLY, ident, b'{"exit_code":0}'))
def credits():
    for ident, _ in requests():
        send(frame(OPENED, ident, b'{}') * 10)
        flood(frame(CREDIT, ident, b'\xff\xff\xff\xff') * 20)
def escapes():
    for ident, _ in requests(): answer(ident, {'error': '\x1b]0;owned\x07\x1b[2J gone', 'exit_code': 1})
def mute(): threading.Event().wait()
def receipts():
    # What each copy claims of the identity that it was to take, by its number.
    whole = {'generation': 2, 'done': ['kernel_rng', 'clock', 'hostname', 'machine_id'], 'skipped': {}, 'failed': {}, 'boot_id': 'x'}
    claims = [
        {}, {'receipt': None}, {'receipt': 'done'}, {'receipt': {**whole, 'done': 'all'}}, {'receipt': {**whole, 'failed': ['x']}},
        {'receipt': {**whole, 'done': ['clock', 'hostname', 'machine_id']}}, {'receipt': {**whole, 'failed': {'uuid': 'no entropy'}}},
        {'receipt': whole, 'error': 'IdentityFailed'}, {'receipt': {**whole, 'boot_id': 'y' * 100000}}, {'receipt': {**whole, 'generation': 'new'}},
        {'receipt': whole},
    ]
    for ident, request in requests():
        claim = claims[request['index'] - 1] if request['action'] == 'fork' else {}
        answer(ident, {'exit_code': 0, **claim})
def archives():
    # What each path packs to, to be unpacked on the host: PLACE is there, and outside of where it is unpacked.
    place = sys.argv[3]
    link, hard = tarfile.SYMTYPE, tarfile.LNKTYPE
    claims = {
        '/up': [('../up', None, '')],
        '/absolute': [(place + '/absolute', None, '')],
        '/through': [('out', link, place), ('out/through', None, '')],
        '/below': [('out', link, place), ('out/deep/er/', tarfile.DIRTYPE, '')],
        '/over': [('over', link, place + '/victim'), ('over', None, '')],
        '/hard': [('hard', hard, place + '/victim'), ('hard', None, '')],
        '/hardup': [('hard', hard, '../../place/victim'), ('hard', None, '')],
        '/hardlink': [('out', link, place), ('hard', hard, 'out/victim'), ('hard', None, '')],
        '/kinds': [('set', None, ''), ('null', tarfile.CHRTYPE, ''), ('pipe', tarfile.FIFOTYPE, '')],
    }
    def packed(members):
        out = io.BytesIO()
        with tarfile.open(fileobj=out, mode='w', format=tarfile.GNU_FORMAT) as tar:
            for name, kind, target in members:
                info = tarfile.TarInfo(name)
                info.linkname, info.mode = target, 0o6777
                if kind: info.type = kind
                else: info.size = 5
                tar.addfile(info, io.BytesIO(b'owned') if not kind else None)
        return out.getvalue()
    for ident, request in requests():
        if request['action'] == 'stat': answer(ident, {'exit_code': 0, 'entry': {'name': 'x', 'type': 'dir', 'size': 0, 'mode': 0o755}})
        if request['action'] != 'pack': continue
        send(frame(OPENED, ident, b'{}') + frame(DATA, ident, b'\x01' + packed(claims[request['path']])) + frame(END, ident, b'\x01'))
        answer(ident, {'exit_code': 0})
def endless():
    for ident, _ in requests(): send(frame(OPENED, ident, b'{}') + frame(DATA, ident, b'\x01' + b'x' * 30000) * 5)
# What was sent before was read by the agent that was here.
with open('/dev/ttyS0', 'w') as console: console.write('hostile: ' + how + '\n')
globals()[how]()
`;

/** What it says on its console when it has taken over. */
export const HOSTILE = 'hostile: ';

/** What to evaluate, to become it. `how` names a function of the program; `more` is a seed, or a directory of the host. */
export const becomeHostile = (how: string, more: number | string = 0): string => `
import os, re
port = next(int(fd) for fd in os.listdir('/proc/self/fd') if re.match('/dev/vport', os.readlink('/proc/self/fd/' + fd)))
os.set_inheritable(port, True)
os.set_blocking(port, True)
os.execv('/usr/bin/python3', ['agent', '-c', ${JSON.stringify(PROGRAM)}, str(port), '${how}', '${more}'])
`;
