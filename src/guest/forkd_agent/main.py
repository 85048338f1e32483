"""Start-up, in order: reaping, warm-up, services, hello."""
import gc
import os
import signal
import sys
import time
from typing import Any

from .children import Children

# Before anything imports subprocess: the recorder must be in place when others bind these functions.
CHILDREN = Children()
CHILDREN.watch_births()

from . import image, output, recipe, warm, wire
from .actions import Actions
from .evaluate import Evaluator
from .execute import Executor
from .port import Port, find_port
from .serve import Server
from .streams import Streams
from .tcp import TcpServer


def main() -> None:
    settle()
    own_image = image.read_image()
    os.environ.update(own_image.env)
    settings = recipe.read_recipe()
    numpy = warm.import_numpy()
    warm.import_common()
    lang = 'node' if settings.get('FORKD_AGENT_LANG') == 'node' else 'python'
    command = settings.get('FORKD_WARMUP_CMD', '')
    executor = Executor(CHILDREN, own_image)
    executor.begin()
    warmup = recipe.Warmup(command) if command else None
    actions = Actions(numpy, lang, executor, Evaluator(numpy), warmup)
    warm.first_use(numpy)
    TcpServer(actions).begin()
    calm_collector()
    serve_port(actions, own_image)


def settle() -> None:
    """Makes this process fit to be PID 1 and the home of other people's code."""
    # PID 1 ignores a signal whose action is the default; Python's own SIGINT handler would interrupt the service.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    os.chdir('/')
    # Evaluated code that reads input must find its end, not the console.
    null = os.open('/dev/null', os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    output.install()
    # A long eval gives way to a ping after this many seconds.
    sys.setswitchinterval(0.001)


def calm_collector() -> None:
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)


def serve_port(actions: Actions, own_image: image.Image) -> None:
    path = find_port()
    if path is None:
        output.log('no virtio-serial port named forkd.agent.0: serving TCP only')
        while True:
            signal.pause()
    hello = wire.encode_json(hello_of(actions))
    output.log(f'ready after {time.monotonic():.2f} s')
    port = Port(path)
    actions.streams = Streams(port, CHILDREN, own_image)
    Server(port, actions, hello).serve()


def hello_of(actions: Actions) -> Any:
    return {
        'generation': wire.GENERATION,
        'uptime_ms': round(time.clock_gettime(time.CLOCK_BOOTTIME) * 1000),
        'python': warm.version(),
        'numpy_version': actions.numpy_version,
    }
