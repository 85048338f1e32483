"""The `eval` action: Python in the warmed interpreter, in fresh globals for each call."""
import ast
import builtins
import functools
import linecache
import os
import threading
import traceback
from typing import Any, Dict

from . import output

FILENAME = '<eval>'
# Several may fail at once, and all have that name.
_lines_lock = threading.RLock()
LINES_SECONDS = 1.0


class Evaluator:
    def __init__(self, numpy: Any) -> None:
        self._pid = os.getpid()
        self._globals: Dict[str, Any] = {'__name__': '__main__', '__builtins__': builtins, '__doc__': None}
        if numpy is not None:
            self._globals['numpy'] = self._globals['np'] = numpy

    def run(self, code: str) -> Dict[str, Any]:
        if not isinstance(code, str):
            raise TypeError(f'code must be a string, not {type(code).__name__}')
        captured = output.begin()
        try:
            reply = self._value(code)
        finally:
            output.end(captured)
            if os.getpid() != self._pid:
                # The code forked and this is the copy: it must not go on as a second agent.
                os._exit(0)
        reply['stdout'] = captured.text('stdout')
        reply['stderr'] = captured.text('stderr')
        return reply

    def _value(self, code: str) -> Dict[str, Any]:
        try:
            text = repr(evaluate(code, dict(self._globals)))
        except SystemExit as error:
            return exited(error)
        except BaseException as error:
            return failed(error, code)
        if len(text) > output.LIMIT:
            text = text[: output.LIMIT] + output.truncation_note('result')
        return {'result': text, 'exit_code': 0}


def evaluate(code: str, scope: Dict[str, Any]) -> Any:
    """The value of an expression; of statements, the value of the last one if it is an expression."""
    compiled = _compile_expression(code)
    return _evaluate_statements(code, scope) if compiled is None else eval(compiled, scope)


# Children often evaluate what their parent was warmed with: then the compilation is inherited too.
@functools.lru_cache(maxsize=64)
def _compile_expression(code: str) -> Any:
    try:
        # eval() itself allows blanks before an expression.
        return compile(code.strip(' \t\r\n'), FILENAME, 'eval')
    except SyntaxError:
        return None


def _evaluate_statements(code: str, scope: Dict[str, Any]) -> Any:
    tree = ast.parse(code, FILENAME, 'exec')
    last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, FILENAME, 'exec'), scope)
    if last is None:
        return None
    return eval(compile(ast.Expression(last.value), FILENAME, 'eval'), scope)


def exited(error: SystemExit) -> Dict[str, Any]:
    """exit() ends the code, not the agent."""
    code = error.code
    if code is None or code == 0:
        return {'result': 'None', 'exit_code': 0}
    status = code & 0xFF if isinstance(code, int) else 1
    return {'error': f'SystemExit: {code}', 'traceback': f'SystemExit: {code}\n', 'exit_code': status or 1}


def failed(error: BaseException, code: str) -> Dict[str, Any]:
    lines = code.splitlines(True)
    # The frames of this file say nothing to the caller.
    inner = error.__traceback__
    while inner is not None and inner.tb_frame.f_code.co_filename == __file__:
        inner = inner.tb_next
    # What says the message is the evaluated code's own, and may never come back. Then others share the lines with it.
    alone = _lines_lock.acquire(timeout=LINES_SECONDS)
    try:
        linecache.cache[FILENAME] = (len(code), None, lines, FILENAME)
        text = ''.join(traceback.format_exception(type(error), error, inner))
        message = f'{type(error).__name__}: {error}'
    except BaseException as second:
        text = message = f'{type(error).__name__}: <{type(second).__name__} in its own message>'
    finally:
        linecache.cache.pop(FILENAME, None)
        if alone:
            _lines_lock.release()
    return {'error': message, 'traceback': text, 'exit_code': 1}
