/** What of the jail and of the limits of a VM this host can enforce. `--strict` refuses to run without any of it. */
import { CONTROLLERS, cgroupProblem, type Controller, hierarchies } from '../cgroup/hierarchy.js';
import { JAIL_PARTS, jailAbility, type JailPart } from '../jail.js';
import { type Check, pass, warn } from './check.js';

const WORKS: Record<JailPart, string> = {
  namespaces: 'VMs get mount, ipc, uts and network namespaces of their own, and an empty root',
  pids: 'each template and its children have a pid namespace of their own',
  user: 'each template and its children are a user that nobody has',
  seccomp: 'VMs may make only the system calls that they need, and gain no privileges',
};

const MISSING: Record<JailPart, string> = {
  namespaces: 'VMs see the files and networks that this user sees',
  pids: 'VMs can tell which processes there are',
  user: 'VMs run as this user',
  seccomp: 'VMs may make any system call',
};

const LIMIT: Record<Controller, string> = {
  cpu: '--cpus',
  memory: '--memory-limit-mib',
  io: '--io-mib-per-s',
  pids: '--pids',
};

const BY_USER_NAMESPACE: Partial<Record<JailPart, true>> = { namespaces: true, pids: true };

const partCheck = (part: JailPart): Check => ({
  name: `jail ${part}`,
  run: () => {
    const { missing, byUserNamespace } = jailAbility();
    const reason = missing[part];
    const how = part in BY_USER_NAMESPACE && byUserNamespace ? ', by way of a user namespace' : '';
    if (reason === undefined) return pass(`${WORKS[part]}${how}`);
    return warn(`${MISSING[part]}: ${reason}`, { hint: 'Run as root, with these capabilities.' });
  },
});

const controllerCheck = (controller: Controller): Check => ({
  // The reference's name for the one that it has.
  name: controller === 'memory' ? 'cgroup v2' : `cgroup ${controller}`,
  run: () => {
    const reason = cgroupProblem(controller);
    if (reason !== undefined)
      return warn(`${LIMIT[controller]} is refused: ${reason}`, {
        hint: 'Run as root; mount cgroup2 on /sys/fs/cgroup where nothing is.',
      });
    const found = hierarchies()[controller];
    return pass(`the ${controller} controller of cgroup v${found?.version}, ${found?.root}`);
  },
});

export const jailChecks: Check[] = [...JAIL_PARTS.map(partCheck), ...CONTROLLERS.map(controllerCheck)];
