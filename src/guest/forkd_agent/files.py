"""What is asked about files without moving them: stat, list, remove, make_dir."""
import os
import shutil
import stat
import traceback
from typing import Any, Dict, List

# Entries of one directory in one answer.
LIST_MAX = 100_000


def answer(action: str, request: Dict[str, Any]) -> Dict[str, Any]:
    try:
        path = request['path']
        if not isinstance(path, str) or not os.path.isabs(path):
            raise ValueError('path must be absolute')
        return {**ACTIONS[action](path, request), 'exit_code': 0}
    except Exception as error:
        text = ''.join(traceback.format_exception(type(error), error, error.__traceback__))
        return {'error': f'{type(error).__name__}: {error}', 'traceback': text, 'exit_code': 1}


def facts(name: str, found: os.stat_result) -> Dict[str, Any]:
    return {
        'name': name,
        'type': kind_of(found.st_mode),
        'size': found.st_size,
        'mode': stat.S_IMODE(found.st_mode),
        'uid': found.st_uid,
        'gid': found.st_gid,
        'mtime_unix': found.st_mtime,
    }


def kind_of(mode: int) -> str:
    if stat.S_ISREG(mode):
        return 'file'
    if stat.S_ISDIR(mode):
        return 'dir'
    return 'link' if stat.S_ISLNK(mode) else 'other'


def file_mode(given: Any, otherwise: int) -> int:
    if given is None:
        return otherwise
    if not isinstance(given, int) or not 0 <= given <= 0o7777:
        raise ValueError('mode must be a whole number from 0 to 4095')
    return given


def stat_one(path: str, request: Dict[str, Any]) -> Dict[str, Any]:
    """Of the link itself, with where it leads."""
    found = facts(os.path.basename(path.rstrip('/')) or '/', os.lstat(path))
    if found['type'] == 'link':
        found['target'] = os.readlink(path)
        found['leads_to'] = kind_of(os.stat(path).st_mode) if os.path.exists(path) else None
    return {'entry': found}


def list_dir(path: str, request: Dict[str, Any]) -> Dict[str, Any]:
    entries: List[Dict[str, Any]] = []
    with os.scandir(path) as found:
        for entry in found:
            if len(entries) == LIST_MAX:
                return {'entries': entries, 'truncated': True}
            try:
                one = facts(entry.name, entry.stat(follow_symlinks=False))
                if one['type'] == 'link':
                    one['target'] = os.readlink(entry.path)
                entries.append(one)
            except FileNotFoundError:
                pass  # Gone since.
    entries.sort(key=lambda one: one['name'])
    return {'entries': entries}


def remove(path: str, request: Dict[str, Any]) -> Dict[str, Any]:
    if not stat.S_ISDIR(os.lstat(path).st_mode):
        os.unlink(path)
    elif request.get('recursive'):
        shutil.rmtree(path)
    else:
        os.rmdir(path)
    return {}


def make_dir(path: str, request: Dict[str, Any]) -> Dict[str, Any]:
    mode = file_mode(request.get('mode'), 0o755)
    if request.get('parents'):
        os.makedirs(path, mode, exist_ok=True)
    else:
        os.mkdir(path, mode)
    return {}


ACTIONS = {'stat': stat_one, 'list': list_dir, 'remove': remove, 'make_dir': make_dir}
