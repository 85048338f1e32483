/** An image with a real dnf, and a repository for it: Debian's packages of both, and an rpm that is made here. */
import { execFileSync } from 'node:child_process';
import { cpSync, existsSync, mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join, normalize } from 'node:path';
import { serve, type WebServer } from './http.js';

export const DNF_PACKAGES = ['mmdebstrap', 'rpm', 'createrepo-c'];

const SPEC = `Name: forkd-hello
Version: 1.0
Release: 1
Summary: says hello
License: none
BuildArch: noarch
AutoReqProv: no
%description
For a test.
%install
mkdir -p %{buildroot}/usr/bin
printf '#!/bin/sh\\necho hello from an rpm\\n' > %{buildroot}/usr/bin/forkd-hello
chmod 755 %{buildroot}/usr/bin/forkd-hello
%files
/usr/bin/forkd-hello
`;
const REPOSITORY = '[test]\nname=test\nbaseurl=http://packages.invalid/\nenabled=1\ngpgcheck=0\n';
const OS_RELEASE = 'NAME="Fedora Linux"\nID=fedora\nVERSION_ID=39\n';

/** What `createrepo_c` makes of one package, forkd-hello, on a web server that is also a proxy. */
export const serveRepository = (dir: string): Promise<WebServer> => {
  const [top, repository, spec] = ['top', 'repository', 'hello.spec'].map((name) => join(dir, name)) as [
    string,
    string,
    string,
  ];
  for (const one of [top, repository]) mkdirSync(one);
  writeFileSync(spec, SPEC);
  const quiet = { stdio: 'ignore' } as const;
  execFileSync('rpmbuild', ['-bb', '-D', `_topdir ${top}`, '-D', `_rpmdir ${repository}`, spec], quiet);
  execFileSync('createrepo_c', [repository], quiet);
  return serve(({ path }, response) => {
    const file = join(repository, normalize(new URL(path, 'http://packages.invalid').pathname));
    if (existsSync(file)) response.end(readFileSync(file));
    else response.writeHead(404).end();
  });
};

/** A root file system as Fedora's is: dnf, no apt, and where packages come from. `prepared`: the tar of such a root, if there is one. Returns its path. */
export const dnfImage = (dir: string, prepared: string): string => {
  const image = join(dir, 'dnf.tar');
  if (existsSync(prepared)) cpSync(prepared, image);
  else {
    const without = ['doc', 'man', 'locale'].map((name) => `--dpkgopt=path-exclude=/usr/share/${name}/*`);
    const args = ['--quiet', '--variant=essential', '--include=dnf,rpm', ...without, 'bookworm', image];
    execFileSync('mmdebstrap', args, { stdio: ['ignore', 'ignore', 'inherit'] });
  }
  const over = join(dir, 'over');
  for (const one of ['etc/yum.repos.d', 'usr/lib']) mkdirSync(join(over, one), { recursive: true });
  writeFileSync(join(over, 'etc/yum.repos.d/test.repo'), REPOSITORY);
  writeFileSync(join(over, 'usr/lib/os-release'), OS_RELEASE);
  const files = ['./etc/yum.repos.d/test.repo', './usr/lib/os-release'];
  execFileSync('tar', ['--append', '-f', image, '-C', over, '--owner=0', '--group=0', ...files]);
  return image;
};
