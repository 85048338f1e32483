/** Writes an initramfs: the "newc" cpio format that the kernel unpacks. */
export type CpioEntry =
  | { path: string; kind: 'directory'; mode?: number }
  | { path: string; kind: 'file'; data: Uint8Array; mode?: number }
  | { path: string; kind: 'link'; target: string }
  | { path: string; kind: 'device'; major: number; minor: number; mode?: number };

const TYPE_BITS = { directory: 0o040000, file: 0o100000, link: 0o120000, device: 0o020000 } as const;
const DEFAULT_MODE = { directory: 0o755, file: 0o644, link: 0o777, device: 0o600 } as const;

/** The archive's bytes: the same entries always give the same bytes (times and inode numbers are fixed). */
export const writeCpio = (entries: CpioEntry[]): Buffer => {
  const parts: Uint8Array[] = [];
  for (const [index, entry] of entries.entries()) parts.push(...record(entry, index + 1));
  parts.push(...record({ path: 'TRAILER!!!', kind: 'file', data: new Uint8Array(0), mode: 0 }, 0));
  return Buffer.concat(parts);
};

const record = (entry: CpioEntry, inode: number): Uint8Array[] => {
  const data = content(entry);
  const mode = 'mode' in entry && entry.mode !== undefined ? entry.mode : DEFAULT_MODE[entry.kind];
  const device = entry.kind === 'device' ? [entry.major, entry.minor] : [0, 0];
  const fields = [
    inode,
    TYPE_BITS[entry.kind] | mode,
    0, // uid
    0, // gid
    entry.kind === 'directory' ? 2 : 1, // links
    0, // mtime
    data.length,
    0, // device of the file system, major and minor
    0,
    ...device,
    Buffer.byteLength(entry.path) + 1,
    0, // checksum
  ];
  const head = `070701${fields.map((field) => field?.toString(16).padStart(8, '0')).join('')}${entry.path}\0`;
  return [padded(Buffer.from(head)), padded(data)];
};

const content = (entry: CpioEntry): Uint8Array => {
  if (entry.kind === 'file') return entry.data;
  if (entry.kind === 'link') return Buffer.from(entry.target);
  return new Uint8Array(0);
};

const padded = (bytes: Uint8Array): Uint8Array => {
  const rest = bytes.length % 4;
  return rest === 0 ? bytes : Buffer.concat([bytes, new Uint8Array(4 - rest)]);
};
