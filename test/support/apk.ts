/** What an image has that uses a real apk (of apk-tools 3), and a repository for it: two signed packages that are made here, one of which needs the other. */
import { execFileSync } from 'node:child_process';
import { existsSync, mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import { basename, join, normalize } from 'node:path';
import { generateKeyPairSync } from 'node:crypto';
import { serve, type WebServer } from './http.js';

const ARCH = 'x86_64';
const KEY = 'forkd-test.rsa.pub';

interface Item {
  name: string;
  body: Buffer | string;
  mode?: number;
}

/** Files of the image, and the web server, which is also a proxy, that its packages come from. `apk`: the program. */
export const openApk = async (dir: string, apk: string): Promise<{ items: Item[]; web: WebServer }> => {
  const { privateKey, publicKey } = generateKeyPairSync('rsa', { modulusLength: 2048 });
  const [keys, secret, repository] = ['keys', 'secret.pem', ARCH].map((name) => join(dir, name)) as [
    string,
    string,
    string,
  ];
  for (const one of [keys, repository]) mkdirSync(one);
  const key = publicKey.export({ type: 'spki', format: 'pem' });
  writeFileSync(join(keys, KEY), key);
  writeFileSync(secret, privateKey.export({ type: 'pkcs8', format: 'pem' }), { mode: 0o600 });
  const run = (...args: string[]) =>
    execFileSync(apk, [...args, '--keys-dir', keys, '--sign-key', secret], { stdio: 'ignore' });
  const package_ = (name: string, path: string, body: string, ...info: string[]): string => {
    const [root, file] = [join(dir, name), join(repository, `${name}-1.0-r0.apk`)];
    mkdirSync(join(root, path, '..'), { recursive: true });
    writeFileSync(join(root, path), body, { mode: 0o755 });
    const said = [`name:${name}`, 'version:1.0-r0', `arch:${ARCH}`, 'description:for a test', ...info];
    run('mkpkg', ...said.flatMap((one) => ['--info', one]), '-F', root, '-o', file);
    return file;
  };
  const packages = [
    package_('forkd-hello', 'usr/bin/forkd-hello', '#!/bin/sh\ncat /usr/share/forkd-word\n', 'depends:forkd-word'),
    package_('forkd-word', 'usr/share/forkd-word', 'hello from an apk\n'),
  ];
  run('mkndx', '-o', join(repository, 'Packages.adb'), ...packages);
  const web = await serve(({ path }, response) => {
    const file = join(dir, normalize(new URL(path, 'http://packages.invalid').pathname));
    if (file.startsWith(repository) && existsSync(file)) response.end(readFileSync(file));
    else response.writeHead(404).end();
  });
  const libraries = execFileSync('ldd', [apk], { encoding: 'utf8' }).match(/\/\S+/g) ?? [];
  const items = [
    { name: 'sbin/apk', body: readFileSync(apk), mode: 0o755 },
    ...libraries.map((path) => ({ name: libraryName(path), body: readFileSync(path), mode: 0o755 })),
    { name: `etc/apk/keys/${KEY}`, body: Buffer.from(key) },
    { name: 'etc/apk/arch', body: ARCH },
    { name: 'etc/apk/repositories', body: 'v3 http://packages.invalid\n' },
    { name: 'etc/apk/world', body: '' },
    { name: 'lib/apk/db/installed', body: '' },
  ];
  return { items, web };
};

/** Where the loader looks for it, whatever it is a link to. */
const libraryName = (path: string): string =>
  path.startsWith('/lib64/') ? path.slice(1) : `lib/x86_64-linux-gnu/${basename(path)}`;
