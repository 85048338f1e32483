"""/etc/forkd-recipe.env and the warm-up process it may ask for (the reference's recipes, FORKD_AGENT_LANG=node)."""
import json
import os
import shlex
import subprocess
import threading
from typing import Any, Dict, Optional

from .output import log

RECIPE = '/etc/forkd-recipe.env'


def read_recipe(path: str = RECIPE) -> Dict[str, str]:
    """KEY=VALUE lines; `#` starts a comment line; quotes around a value are dropped. The process environment wins."""
    values: Dict[str, str] = {}
    try:
        with open(path, encoding='utf-8', errors='replace') as file:
            lines = file.read().splitlines()
    except OSError:
        lines = []
    for line in lines:
        line = line.strip()
        if not line or line.startswith('#') or '=' not in line:
            continue
        key, value = line.split('=', 1)
        value = value.strip()
        if len(value) >= 2 and value[0] == value[-1] and value[0] in '"\'':
            value = value[1:-1]
        values[key.strip()] = value
    values.update({key: os.environ[key] for key in ('FORKD_WARMUP_CMD', 'FORKD_AGENT_LANG') if key in os.environ})
    return values


class Warmup:
    """The warm-up process. It prints {"ready":true} once, then answers one JSON line for each JSON line."""

    def __init__(self, command: str) -> None:
        self.ready = False
        self._lock = threading.Lock()
        self._count = 0
        self._process: Any = None
        if command:
            self._start(command)

    def _start(self, command: str) -> None:
        pipe = subprocess.PIPE
        try:
            self._process = subprocess.Popen(shlex.split(command), stdin=pipe, stdout=pipe, stderr=pipe)
        except (OSError, ValueError) as error:
            log(f'warm-up failed: {type(error).__name__}: {error}')
            return
        threading.Thread(target=self._copy_errors, name='forkd-warmup', daemon=True).start()
        try:
            self.ready = bool(json.loads(self._process.stdout.readline())['ready'])
        except (ValueError, KeyError, TypeError):
            log('warm-up failed: its first line was not {"ready":true}')

    def _copy_errors(self) -> None:
        for line in self._process.stderr:
            log('forkd-warmup: ' + line.decode('utf-8', 'replace').rstrip())

    def evaluate(self, code: str) -> Dict[str, Any]:
        if not self.ready:
            return {'error': 'warmup process is not ready', 'exit_code': 1}
        with self._lock:
            line = self._ask(code)
        if line is None:
            self.ready = False
            return {'error': 'warmup process closed its stdout', 'exit_code': 1}
        try:
            answer = json.loads(line)
        except ValueError as error:
            raw = line.decode('utf-8', 'replace')
            return {'error': f'bridge parse error: {error}', 'raw': raw, 'exit_code': 1}
        if 'error' in answer:
            return {'error': str(answer['error']), 'stack': str(answer.get('stack', '')), 'exit_code': 1}
        return {'result_json': json.dumps(answer.get('result')), 'exit_code': 0}

    def _ask(self, code: str) -> Optional[bytes]:
        self._count += 1
        try:
            self._process.stdin.write(json.dumps({'id': self._count, 'code': code}).encode() + b'\n')
            self._process.stdin.flush()
        except OSError:
            return None
        return self._process.stdout.readline() or None
