/**
 * Packages that an image's own package manager adds to its root disk. It runs in a VM that has this disk for writing: what an image brings is never run on
 * the host. The VM reaches the network through QEMU, as the user who runs it does, without a tap.
 */
import { readFileSync } from 'node:fs';
import { ForkdError } from '../../contract/errors.js';
import { lastLines } from '../image/command.js';
import { type DiskContext, runInDisk, shrink } from './disk-vm.js';

/** A name as apt, apk and dnf have them, with a version; never an option. */
const PACKAGE = /^[A-Za-z0-9][A-Za-z0-9.+_:~=-]{0,127}$/;

/** Throws ARGUMENT_INVALID. */
export const requirePackages = (names: string[], commandName: string): void => {
  const bad = names.find((name) => !PACKAGE.test(name));
  if (bad === undefined) return;
  throw new ForkdError('ARGUMENT_INVALID', {
    argument: '--extra',
    reason: `'${bad}' is not the name of a package`,
    command: commandName,
  });
};

/** Ends with a line that says whether there is a Python for the agent. */
const SCRIPT = `
set -e
export DEBIAN_FRONTEND=noninteractive
if command -v apt-get >/dev/null 2>&1; then
  made=
  [ -e /usr/sbin/policy-rc.d ] || { made=1; printf '#!/bin/sh\\nexit 101\\n' > /usr/sbin/policy-rc.d; chmod 755 /usr/sbin/policy-rc.d; }
  apt-get -q update
  apt-get -q -y --no-install-recommends install "$@"
  apt-get -q clean
  rm -rf /var/lib/apt/lists/*
  [ -z "$made" ] || rm /usr/sbin/policy-rc.d
elif command -v apk >/dev/null 2>&1; then apk add --no-cache "$@"
elif command -v dnf >/dev/null 2>&1; then dnf -y --setopt=install_weak_deps=False install "$@"; dnf clean all
elif command -v microdnf >/dev/null 2>&1; then microdnf -y install "$@"; microdnf clean all
else echo 'the image has neither apt-get nor apk nor dnf' >&2; exit 1
fi >&2
for python in /usr/local/bin/python3 /usr/bin/python3; do
  [ -x $python ] || continue
  found=$python
  $python -c 'import sys; sys.exit(sys.version_info < (3, 9))' || found=
  break
done
sync
echo "python $found"
`;

/** Adds packages to `disk`, which then is as small as it can be. Returns the path of a Python for the agent, if there is one. Throws EXTRAS_FAILED. */
export const installExtras = async (
  disk: string,
  image: string,
  packages: string[],
  context: DiskContext,
): Promise<string | undefined> => {
  const { signal } = context;
  const options = { env: proxies(), loopback: allowedLoopback() };
  const reply = await runInDisk(disk, ['sh', '-c', SCRIPT, 'sh', ...packages], context, options);
  const python = /^python (\S*)$/m.exec(reply.stdout ?? '')?.[1];
  if (reply.error !== undefined || reply.exit_code !== 0 || python === undefined)
    throw new ForkdError('EXTRAS_FAILED', {
      packages: packages.join(' '),
      image,
      output: reply.error ?? lastLines(`${reply.stderr}`),
    });
  await shrink(disk, signal);
  return python === '' ? undefined : python;
};

/** The host's own, whose loopback has another name in there. */
const proxies = (): Record<string, string> =>
  Object.fromEntries(
    ['http_proxy', 'https_proxy', 'no_proxy'].flatMap((name) => {
      const value = process.env[name] ?? process.env[name.toUpperCase()];
      return value ? [[name, value.replace(/\/\/(localhost|127\.0\.0\.1|\[::1\])/, '//10.0.2.2')]] : [];
    }),
  );

const LOOPBACK = /^https?:\/\/(?:[^@/]*@)?(localhost|127(?:\.\d+){3}|\[::1\])(?::(\d+))?/i;

/** What listens on this host's loopback and has to be reached from the VM: its proxies, and the resolver that QEMU asks for the guest. */
export const allowedLoopback = (env: NodeJS.ProcessEnv = process.env, resolvConf = readResolvers()): string[] => {
  const ofProxies = ['http_proxy', 'https_proxy'].flatMap((name) => {
    const [whole, host = '', port] = LOOPBACK.exec(env[name] ?? env[name.toUpperCase()] ?? '') ?? [];
    if (whole === undefined) return [];
    const number = port ?? (whole.toLowerCase().startsWith('https') ? '443' : '80');
    // By 10.0.2.2 a guest finds 127.0.0.1, whatever the host calls it.
    return [...new Set(['127.0.0.1', host.replace(/^\[|\]$/g, '')])]
      .filter((one) => one !== 'localhost')
      .map((one) => `${one}:${number}`);
  });
  const ofResolvers = [...resolvConf.matchAll(/^nameserver\s+(\S+)/gm)].map(([, address]) => `${address}:53`);
  return [...new Set([...ofProxies, ...ofResolvers])].slice(0, 16);
};

const readResolvers = (): string => {
  try {
    return readFileSync('/etc/resolv.conf', 'utf8');
  } catch {
    return '';
  }
};
