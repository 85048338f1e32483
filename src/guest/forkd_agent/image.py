"""What a container image says: environment, directory and user of its programs (/etc/forkd/image.conf, written by the builder).

One word and a value a line: `env NAME=VALUE`, `cwd PATH`, `uid N`, `gid N`, `groups N N`. In a value, `\\\\` and `\\n` stand for a
backslash and a line break. The agent in C reads the same (agent/config.c).
"""
import os
import re
from typing import Any, Dict, List

PATH = '/etc/forkd/image.conf'


class Image:
    def __init__(self) -> None:
        self.env: Dict[str, str] = {}
        self.cwd = '/'
        # Arguments of subprocess.Popen.
        self.user: Dict[str, Any] = {}


def read_image(path: str = PATH) -> Image:
    image = Image()
    try:
        with open(path, encoding='utf-8', errors='surrogateescape') as file:
            lines = file.read().split('\n')
    except OSError:
        return image
    for line in lines:
        word, _, value = line.partition(' ')
        value = re.sub(r'\\(.)', lambda found: '\n' if found[1] == 'n' else found[1], value)
        if word == 'env':
            name, _, text = value.partition('=')
            image.env[name] = text
        elif word == 'cwd':
            image.cwd = value
        elif word in ('uid', 'gid'):
            image.user['user' if word == 'uid' else 'group'] = int(value)
        elif word == 'groups':
            image.user['extra_groups'] = numbers(value)
    return image


def numbers(text: str) -> List[int]:
    return [int(word) for word in text.split()]


def cwd_of(image: Image) -> str:
    """An image's directory need not be there."""
    return image.cwd if os.path.isdir(image.cwd) else '/'
