/** A small image that runs without Python: the busybox of the initramfs, which is static. */
import { readFileSync } from 'node:fs';
import { type BuiltImage, buildImage, type Item, layer } from './oci.js';

const COMMANDS =
  'sh cat date ls id env sleep pwd echo touch ps kill hostname head od yes wc rm mkdir setsid test wget chmod sync'.split(
    ' ',
  );

/** One file of a cpio archive (newc). Its header's field 6 is the size; name and content begin at multiples of 4. */
const fileIn = (archive: Buffer, name: string): Buffer => {
  const header = archive.indexOf(`${name}\0`) - 110;
  const size = Number.parseInt(archive.toString('latin1', header + 54, header + 62), 16);
  const start = header + Math.ceil((110 + name.length + 1) / 4) * 4;
  return archive.subarray(start, start + size);
};

export const busyboxItems = (initrd: string): Item[] => [
  { name: 'bin/busybox', body: fileIn(readFileSync(initrd), 'bin/busybox'), mode: 0o755 },
  ...COMMANDS.map((name): Item => ({ name: `bin/${name}`, type: 'symlink', to: 'busybox' })),
  { name: 'etc/passwd', body: 'root:x:0:0::/root:/bin/sh\napp:x:1000:1001::/home/app:/bin/sh\n' },
  { name: 'etc/group', body: 'root:x:0:\napp:x:1001:\nextra:x:7:app\n' },
  { name: 'home/app/', type: 'directory', uid: 1000, gid: 1001 },
  { name: 'srv/', type: 'directory', uid: 1000, gid: 1001 },
];

/** `config` as in an image's configuration: Env, WorkingDir, User, Entrypoint, Cmd. */
export const busyboxImage = async (initrd: string, config: object = {}, more: Item[] = []): Promise<BuiltImage> =>
  buildImage([await layer(busyboxItems(initrd)), ...(more.length > 0 ? [await layer(more)] : [])], config);
