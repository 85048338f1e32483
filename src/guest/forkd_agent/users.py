"""Who a program runs as: NAME, UID, NAME:GROUP or UID:GID, as container tools write it."""
import grp
import os
import pwd
from typing import Any, Dict, Tuple


def user_of(text: Any) -> Tuple[Dict[str, Any], Dict[str, str]]:
    """Arguments of subprocess.Popen, and the environment that goes with them. Raises LookupError, ValueError."""
    name, _, group = str(text).partition(':')
    if not name:
        raise ValueError(f"'{text}' is not a user")
    entry = find(name)
    uid = int(name) if entry is None else entry.pw_uid
    gid = gid_of(group) if group else (0 if entry is None else entry.pw_gid)
    groups = [gid] if entry is None or group else os.getgrouplist(entry.pw_name, gid)
    env = {} if entry is None else {'HOME': entry.pw_dir, 'USER': entry.pw_name, 'LOGNAME': entry.pw_name}
    return {'user': uid, 'group': gid, 'extra_groups': groups}, env


def find(name: str) -> Any:
    try:
        return pwd.getpwuid(int(name)) if name.isdigit() else pwd.getpwnam(name)
    except KeyError:
        if name.isdigit():
            return None
        raise LookupError(f"the guest has no user '{name}'") from None


def gid_of(group: str) -> int:
    if group.isdigit():
        return int(group)
    try:
        return grp.getgrnam(group).gr_gid
    except KeyError:
        raise LookupError(f"the guest has no group '{group}'") from None
