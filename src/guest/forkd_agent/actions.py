"""What the agent does for a request, whichever way it came."""
import gc
import os
import traceback
from typing import Any, Callable, Dict, Optional

from . import wire
from .evaluate import Evaluator
from .execute import Executor
from .identity import Identity, failure, set_clock
from .recipe import Warmup
from .streams import ACTIONS as STREAM_ACTIONS
from .streams import Streams

Reply = Callable[[Dict[str, Any]], None]

NOT_RELEASED = 'NotReleased: this copy has not taken its own identity yet (no successful fork since the seal)'


class Actions:
    def __init__(self, numpy: Any, lang: str, executor: Executor, evaluator: Evaluator, warmup: Optional[Warmup]) -> None:
        self.numpy_version = 'not-installed' if numpy is None else str(numpy.__version__)
        self._lang = lang
        self._executor = executor
        self._evaluator = evaluator
        self._warmup = warmup
        self._identity = Identity(numpy, lang)
        self._released = True
        # None without a port to the host.
        self.streams: Optional[Streams] = None

    def handle(self, request: Any, reply: Reply, ident: int = 0) -> None:
        """Answers exactly once; for exec and streams later, from another thread. `ident` is 0 where there are no frames."""
        try:
            answer = self._answer(request, reply, ident)
        except Exception as error:
            answer = failed(error)
        if answer is not None:
            reply(answer)

    def _answer(self, request: Any, reply: Reply, ident: int) -> Optional[Dict[str, Any]]:
        action = request.get('action')
        if action == 'eval':
            return self._eval(request['code']) if self._released else refused()
        if action == 'ping':
            return self._ping()
        if action == 'exec':
            if not self._released:
                return refused()
            self._executor.start(request, reply)
            return None
        if action == 'fork':
            return self._fork(request)
        if action == 'clock':
            set_clock(request['clock_ns'])
            return {'exit_code': 0}
        if action == 'seal':
            return self._seal()
        if action in STREAM_ACTIONS and self.streams is not None:
            return self.streams.start(action, request, reply, ident) if self._released else refused()
        return {'error': f'unknown action: {action}', 'exit_code': 1}

    def _ping(self) -> Dict[str, Any]:
        return {
            'pong': True,
            'numpy_version': self.numpy_version,
            'pid': os.getpid(),
            'agent_lang': self._lang,
            'warmup_ready': self._warmup is not None and self._warmup.ready,
            'generation': wire.GENERATION,
            'released': self._released,
        }

    def _eval(self, code: Any) -> Dict[str, Any]:
        if self._lang == 'node' and self._warmup is not None:
            return self._warmup.evaluate(code)
        return self._evaluator.run(code)

    def _seal(self) -> Dict[str, Any]:
        self._released = False
        self._identity.seal()
        # What is alive now is never looked at by a collection again: a child must not copy pages only to find no garbage.
        gc.collect()
        gc.freeze()
        return {'sealed': True, 'exit_code': 0}

    def fork_sealed(self, payload: bytes) -> Optional[bytes]:
        """The answer of a sealed copy to a `fork` request that needs nothing special, from bytes to bytes; None: handle it."""
        if self._released or not isinstance(payload, bytes) or (self.streams is not None and self.streams.active):
            return None
        answer = self._identity.take_sealed(payload)
        self._released = answer is not None
        return answer

    def _fork(self, request: Dict[str, Any]) -> Dict[str, Any]:
        self._released = False
        if self.streams is not None and self.streams.active:
            # They are the host's of the machine that this is a copy of.
            self.streams.drop()
        receipt = self._identity.take(request)
        error = failure(receipt)
        if error is not None:
            return {'receipt': receipt, 'error': error, 'exit_code': 1}
        self._identity.release()
        self._released = True
        return {'receipt': receipt, 'exit_code': 0}


def refused() -> Dict[str, Any]:
    return {'error': NOT_RELEASED, 'exit_code': 1}


def failed(error: BaseException) -> Dict[str, Any]:
    text = ''.join(traceback.format_exception(type(error), error, error.__traceback__))
    return {'error': f'{type(error).__name__}: {error}', 'traceback': text, 'exit_code': 1}
