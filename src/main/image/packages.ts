/** Which distribution packages the default guest is made of. */

/** Metapackages that lead to a kernel, best first. The cloud kernel is the smallest with every virtio driver. */
export const KERNEL_METAPACKAGES = ['linux-image-cloud-amd64', 'linux-image-virtual', 'linux-image-amd64'];

/** Of what a kernel metapackage needs, only these hold the kernel and its modules. */
export const isKernelPackage = (name: string): boolean => /^linux-(image|modules)-\d/.test(name);

/** busybox-static is the initramfs's shell, and in the guest the commands that are not worth a package of their own. */
export const USERLAND = [
  'base-files',
  'bash',
  'busybox-static',
  'ca-certificates',
  'coreutils',
  'dash',
  'debianutils',
  'findutils',
  'grep',
  'gzip',
  'hostname',
  'libc-bin',
  'mawk',
  'procps',
  'python3',
  'python3-numpy',
  'sed',
  'tar',
];

/** Needed only to install or configure packages, which never happens in the guest. */
const NOT_IN_GUEST =
  /^(perl|perl-base|perl-modules-.*|libperl.*|lib.*-perl|libgdbm-compat4|libgdbm6|dpkg|usrmerge|debconf|cdebconf|init-system-helpers|adduser|passwd|login|libpam.*|libsemanage.*|libsepol.*|libdebconf.*|libaudit.*|libcap-ng0|sysvinit-utils|lsb-base|openssl|util-linux-extra|systemd.*|udev)$/;

export const belongsInGuest = (name: string): boolean => !NOT_IN_GUEST.test(name);

/** Busybox applets that get a name in the guest when no package brings the command. */
export const BUSYBOX_COMMANDS = [
  'clear',
  'dmesg',
  'ifconfig',
  'ip',
  'less',
  'mount',
  'more',
  'nc',
  'netstat',
  'nslookup',
  'ping',
  'poweroff',
  'reboot',
  'route',
  'setsid',
  'su',
  'umount',
  'unzip',
  'vi',
  'wget',
  'which',
  'xxd',
];

const DROPPED_DIRECTORIES = [
  'usr/share/doc/',
  'usr/share/man/',
  'usr/share/info/',
  'usr/share/locale/',
  'usr/share/lintian/',
  'usr/share/bug/',
  'usr/share/doc-base/',
  'usr/share/menu/',
  'usr/share/pixmaps/',
  'usr/share/applications/',
  'usr/lib/x86_64-linux-gnu/gconv/',
  'usr/lib/x86_64-linux-gnu/perl-base/',
  'usr/lib/python3/dist-packages/numpy/core/include/',
];

/** Documentation, translations, test suites and static libraries: half of the bytes and no use in a sandbox. */
export const isDropped = (path: string): boolean =>
  DROPPED_DIRECTORIES.some((directory) => path.startsWith(directory)) ||
  /^usr\/lib\/python3[^/]*\/.*\/tests?\//.test(path) ||
  /^usr\/lib\/python3\.\d+\/(lib2to3|idlelib|turtledemo|tkinter)\//.test(path) ||
  path.endsWith('.a');
