/**
 * The one catalogue of errors. Each row: code -> message, HTTP status, exit code and hint (what the user does next).
 * `{name}` in a text is replaced by `details.name`. docs/reference/errors.md lists the same rows; a test holds them equal.
 *
 * Errors cross threads and sockets as data (`toData`), since a structured clone of an Error subclass loses name and code.
 */
interface Row {
  message: string;
  http: number;
  exit: number;
  hint: string;
}

const row = (http: number, message: string, hint: string, exit = 1): Row => ({ message, http, exit, hint });

export const catalogue = {
  // Bad input
  TAG_INVALID: row(
    400,
    "invalid tag '{tag}'",
    'A tag is 1 to 64 letters, digits, "_", "." or "-", and starts with a letter, a digit or "_".',
  ),
  ARGUMENT_INVALID: row(400, '{argument} {reason}', 'See `forkd {command} --help`.', 2),
  COUNT_INVALID: row(
    400,
    'cannot fork {n} children: the count must be between 1 and {max}',
    'Give -n a number in that range.',
    2,
  ),
  TARGET_INVALID: row(
    400,
    "'{target}' is not a target",
    'Give host:port, unix:PATH, or the id of a running sandbox (`forkd fork` prints ids).',
    2,
  ),
  INPUT_FILE_INVALID: row(
    400,
    "cannot read the input file '{path}': {reason}",
    'Give --input a readable text file with one line for each child.',
  ),
  VOLUME_INVALID: row(
    400,
    "invalid volume '{volume}': {reason}",
    'Use HOST:GUEST or HOST:GUEST:ro; make an image with `truncate -s 1G data.ext4 && mkfs.ext4 data.ext4`.',
  ),
  FILE_MISSING: row(400, "{what} '{path}' does not exist", 'Check the path.'),

  // Snapshots
  SNAPSHOT_NOT_FOUND: row(
    404,
    "snapshot '{tag}' not found",
    'List the tags with `forkd images`; make one with `forkd snapshot --tag {tag}`.',
  ),
  SNAPSHOT_EXISTS: row(409, "snapshot '{tag}' already exists", 'Choose another tag, or replace it with --force.'),
  SNAPSHOT_BUSY: row(
    409,
    "snapshot '{tag}' is being written or removed by another forkd",
    'Wait for the other command, then try again.',
  ),
  SNAPSHOT_IN_USE: row(
    409,
    "snapshot '{tag}' is in use by {holder}",
    'Wait for it to end, or end it; `--force` removes the tag all the same, and what runs goes on.',
  ),
  SNAPSHOT_HAS_DEPENDENTS: row(
    409,
    "snapshot '{tag}' is the parent of {dependents}: cascade removes them too, force leaves them without their memory",
    'See the chain with `forkd snapshot-info {tag}`; free a child from its parents with `forkd snapshot-compact`.',
  ),
  SNAPSHOT_CORRUPT: row(
    409,
    "snapshot '{tag}' is damaged: {reason}",
    'Remove it with `forkd rmi {tag}` and make it again.',
  ),
  SNAPSHOT_INCOMPATIBLE: row(
    409,
    "snapshot '{tag}' does not fit this host: {reason}",
    'Use a host that fits, or make the snapshot again here.',
  ),
  PARENT_MISSING: row(
    409,
    "snapshot '{tag}' holds only what changed since '{parent}', and '{parent}' is missing",
    'Nothing can bring its memory back without that very parent: remove it with `forkd rmi {tag}`.',
  ),
  PARENT_ALTERED: row(
    409,
    "snapshot '{tag}' holds only what changed since '{parent}', and '{parent}' is another one now: its root is {actual}, not {expected}",
    'Bring back the parent it was made from, or remove it with `forkd rmi {tag}` and make it again.',
  ),
  CHAIN_CYCLE: row(
    409,
    "the chain of snapshot '{tag}' has no base: {cycle}",
    'Its snapshot.json was changed by hand: remove the tags with `forkd rmi --force`.',
  ),
  CHAIN_TOO_DEEP: row(
    409,
    "snapshot '{tag}' would be more than {max} links away from its base",
    'Make a new base of its parent first: `forkd snapshot-compact --from PARENT --to NEW`.',
  ),

  // Host
  KVM_REQUIRED: row(
    409,
    'KVM was required, but {reason}',
    'Drop --require kvm to use emulation, or run on a host where `forkd doctor` shows KVM as usable.',
  ),
  TCG_REQUIRED: row(409, 'emulation was required, but {reason}', 'Drop --require tcg.'),
  QEMU_MISSING: row(
    500,
    'qemu-system-x86_64 is not installed',
    'Run `forkd doctor --fix`, or `apt-get install -y --no-install-recommends qemu-system-x86`.',
  ),
  DISK_FULL: row(
    507,
    'no space left in {path}: {needed} needed, {free} free',
    'Free some space, remove snapshots with `forkd rmi`, or run `forkd cleanup --yes`.',
  ),
  MEMORY_SHORT: row(507, 'not enough memory: {reason}', 'Fork fewer children, or free memory on this host.'),
  NETNS_MISSING: row(
    409,
    "network namespace '{netns}' does not exist",
    'Make it with `ip netns add {netns}`, or drop --per-child-netns.',
  ),
  TAP_SHARED: row(
    409,
    "snapshot '{tag}' has a network card on '{tap}', which only one child can hold",
    'Use -n 1, or --per-child-netns.',
  ),
  CGROUP_FAILED: row(
    500,
    'cannot set the memory limit: {reason}',
    'Run as root on a host with a cgroup memory controller, or drop --memory-limit-mib.',
  ),
  PERMISSION_DENIED: row(403, 'permission denied: {reason}', 'Run as root or give this user access.'),
  PACKAGES_MISSING: row(
    500,
    'packages are missing on this host: {packages}',
    'Run as root: `apt-get install -y --no-install-recommends {packages}`.',
  ),
  PACKAGES_FAILED: row(
    502,
    'cannot install {packages}: {reason}',
    'Check that `apt-get update` works on this host, then try again.',
  ),
  HOST_UNFIT: row(
    500,
    'this host cannot run forkd: {reason}',
    'Mend it and try again; `forkd doctor` shows everything that is checked.',
  ),

  // Images
  IMAGE_TOOL_MISSING: row(
    500,
    "'{tool}' is needed to build the guest image",
    'Run `forkd doctor --fix`, or `apt-get install -y {package}`.',
  ),
  IMAGE_DOWNLOAD_FAILED: row(
    502,
    'cannot download the guest packages: {reason}',
    'Check that this host reaches its Debian mirror: `apt-get update`.',
  ),
  IMAGE_BUILD_FAILED: row(500, 'cannot build the guest image: {reason}', 'Run `forkd doctor`, then try again.'),

  // Virtual machines
  VMM_START_FAILED: row(500, 'QEMU did not start: {reason}', 'Run `forkd doctor`.'),
  VMM_DIED: row(
    500,
    '{vm}: QEMU ended ({how}){console}',
    'Look at the console lines above; `forkd doctor` checks this host.',
  ),
  VMM_PROTOCOL: row(
    500,
    '{vm}: QEMU refused `{command}`: {reason}',
    'Run `forkd doctor`; check that the QEMU version is supported.',
  ),
  MEMORY_HANDSHAKE: row(
    500,
    '{vm}: cannot serve its memory: {reason}',
    'Check that the version of the virtual machine monitor is supported.',
  ),
  BRANCH_UNSUPPORTED: row(
    409,
    "sandbox '{id}' cannot be branched: {reason}",
    'Fork it without --cold on a host that emulates.',
  ),
  HOTFORK_REFUSED: row(
    500,
    '{vm} cannot be forked: {reason}',
    'Use --cold, and please report this: the reason names what the shim does not understand.',
  ),
  HOTFORK_BROKEN: row(500, 'the hot-fork shim of {vm} does not answer: {reason}', 'Try again, or use --cold.'),
  GUEST_PANIC: row(500, '{vm}: the guest kernel panicked: {panic}', 'Check the kernel and the root file system.'),
  GUEST_SILENT: row(
    504,
    '{vm}: the guest agent did not answer within {seconds} s{console}',
    'Raise --boot-wait-secs; check that the root file system has python3.',
  ),
  AGENT_UNREACHABLE: row(502, 'cannot reach the agent at {target}: {reason}', 'Check that the sandbox still runs.'),
  AGENT_TIMEOUT: row(
    504,
    'the agent at {target} did not answer within {seconds} s',
    'Raise --timeout-secs, or check the sandbox with `forkd ping`.',
  ),
  EXEC_TIMEOUT: row(504, 'the command did not end within {seconds} s and was killed', 'Raise --timeout-secs.'),
  AGENT_ERROR: row(502, 'agent error: {error}', 'The guest refused or could not do this.'),
  AGENT_PROTOCOL: row(
    502,
    'the agent at {target} sent something that is not the protocol: {reason}',
    'Check that the target is a forkd agent.',
  ),
  IDENTITY_FAILED: row(
    500,
    '{vm}: could not take its own identity: {failed}',
    'The child was stopped, not released. Check the hooks in /etc/forkd/fork.d of the image.',
  ),
  CHILDREN_FAILED: row(500, '{failed} of {n} children failed; the first: {reason}', 'See the messages above.'),

  // Sandboxes
  SANDBOX_NOT_FOUND: row(404, "sandbox '{id}' not found", 'A sandbox lives as long as the `forkd fork` that made it.'),
  CLEANUP_REFUSED: row(400, "refusing to remove '{path}': {reason}", 'Only directories that forkd made are removed.'),

  // Commands
  CANCELLED: row(499, 'interrupted', 'Everything that was started has been stopped.', 130),
  NOT_CONFIRMED: row(400, 'nothing was changed', 'Run again and answer y, or give --yes.'),
  DAEMON_NEEDED: row(501, '{what} needs the daemon', 'The daemon is not part of this release.'),
  INTERNAL: row(500, '{reason}', 'This is a bug in forkd: please report it with the command you ran.'),
} satisfies Record<string, Row>;

export type ErrorCode = keyof typeof catalogue;
export type ErrorDetails = Record<string, string | number>;

/** An error as it crosses a thread, a socket or `--json`. */
export interface ErrorData {
  code: ErrorCode;
  message: string;
  hint: string;
  details: ErrorDetails;
  cause?: string;
}

const fill = (text: string, details: ErrorDetails) =>
  text.replace(/\{(\w+)\}/g, (whole, name: string) => (name in details ? String(details[name]) : whole));

export class ForkdError extends Error {
  readonly code: ErrorCode;
  readonly details: ErrorDetails;
  readonly hint: string;

  constructor(code: ErrorCode, details: ErrorDetails = {}, cause?: unknown) {
    const { message, hint } = catalogue[code];
    super(fill(message, details), cause === undefined ? undefined : { cause });
    this.name = 'ForkdError';
    this.code = code;
    this.details = details;
    this.hint = fill(hint, details);
  }

  get exitCode(): number {
    return catalogue[this.code].exit;
  }

  get httpStatus(): number {
    return catalogue[this.code].http;
  }

  toData(): ErrorData {
    const data: ErrorData = { code: this.code, message: this.message, hint: this.hint, details: this.details };
    if (this.cause !== undefined) data.cause = reasonOf(this.cause);
    return data;
  }

  static fromData(data: ErrorData): ForkdError {
    return new ForkdError(data.code, data.details, data.cause);
  }

  /** Any thrown value as one of ours: errno codes that users meet get their row, the rest is INTERNAL with its cause kept. */
  static from(thrown: unknown): ForkdError {
    if (thrown instanceof ForkdError) return thrown;
    const code = errnoOf(thrown);
    if (code === 'ENOSPC' || code === 'EDQUOT') {
      return new ForkdError('DISK_FULL', { path: pathOf(thrown), needed: 'more', free: 'too little' }, thrown);
    }
    if (code === 'ENOMEM') return new ForkdError('MEMORY_SHORT', { reason: reasonOf(thrown) }, thrown);
    if (code === 'EACCES' || code === 'EPERM')
      return new ForkdError('PERMISSION_DENIED', { reason: reasonOf(thrown) }, thrown);
    return new ForkdError('INTERNAL', { reason: reasonOf(thrown) }, thrown);
  }
}

/** The text of any thrown value. */
export const reasonOf = (thrown: unknown): string => (thrown instanceof Error ? thrown.message : String(thrown));

/** The errno name (`ENOENT`) of a system error, or undefined. */
export const errnoOf = (thrown: unknown): string | undefined =>
  typeof thrown === 'object' && thrown !== null && 'code' in thrown && typeof thrown.code === 'string'
    ? thrown.code
    : undefined;

const pathOf = (thrown: unknown): string =>
  typeof thrown === 'object' && thrown !== null && 'path' in thrown ? String(thrown.path) : 'the data directory';
