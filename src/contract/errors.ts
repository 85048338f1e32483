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
    'Give host:port, unix:PATH, unix:PATH#ID, or the id of a running sandbox (`forkd fork` prints ids).',
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
  FILE_EXPECTED: row(
    400,
    "'{path}' is not a file, and nothing is written in its place",
    'Give the path of a file: one that is there is replaced.',
  ),

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
  SNAPSHOT_NOT_READY: row(
    409,
    "snapshot '{tag}' is not ready: {reason}",
    'GET /v1/snapshots tells when one that is being written is ready; delete one that failed.',
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
  DIFF_IMPOSSIBLE: row(
    409,
    'these two cannot be compared: {reason}',
    'Compare branches of one base; `--files` and `--processes` compare any two.',
  ),
  DIFF_COMMAND_FAILED: row(
    500,
    "'{command}' ended with exit code {code}, so nothing was written: {output}",
    'Try it by hand in a child: `forkd fork --tag TAG -n 1 -- COMMAND`.',
  ),

  WARM_UP_FAILED: row(
    500,
    "the warm-up '{command}' ended with exit code {code}, so nothing was saved: {output}",
    'Try it by hand in a child of a snapshot that was made without it.',
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
  PACK_INVALID: row(
    422,
    "pack '{path}' is refused: {reason}",
    'Nothing was unpacked. Get the pack again, or ask its maker for a whole one.',
  ),
  PACK_UNTRUSTED: row(
    403,
    "pack '{path}' is not trusted: {reason}",
    'Nothing was unpacked. Name the public key of its maker with --trust, or leave --trust out if you know where it is from.',
  ),
  PACK_ENCRYPTED: row(
    403,
    "pack '{path}' is encrypted{reason}",
    'Name the file with your identity (AGE-SECRET-KEY-...) with --identity.',
  ),
  AGE_KEY_INVALID: row(
    400,
    "'{path}' is no age key for this: {reason}",
    'Make a pair with age-keygen: its file is for --identity, the public key in it (age1...) for --encrypt.',
  ),
  KEY_INVALID: row(
    400,
    "'{path}' is not a key for this: {reason}",
    'Make a pair: `openssl genpkey -algorithm ed25519 -out key.pem`, then `openssl pkey -in key.pem -pubout -out key.pub`.',
  ),
  PACK_UNSUPPORTED: row(
    409,
    "snapshot '{tag}' cannot be packed: {reason}",
    'Make a snapshot without what is named, and pack that.',
  ),
  PACK_UNREADABLE: row(
    422,
    "pack '{path}' cannot be read by this forkd: {reason}",
    'Use a pack of versions 1 to 3, as `forkd pack` writes them.',
  ),
  PACK_SIDECAR_MISSING: row(
    404,
    "the root disk of pack '{path}' is missing: {name} is not beside it",
    'Nothing was unpacked. Get {name} from where the pack is from, into the same directory: `forkd pack --pack-version` writes both.',
  ),
  PACK_OTHER_ENGINE: row(
    422,
    "pack '{path}' holds a VM of another engine, whose device state QEMU cannot load",
    'Its root disk can be booted here: take it out with `--disk disk.ext4`, then `forkd snapshot --tag TAG --rootfs disk.ext4`.',
  ),
  DISK_FULL: row(
    507,
    'no space left in {path}: {needed} needed, {free} free',
    'Free some space, remove snapshots with `forkd rmi`, or run `forkd cleanup --yes`.',
  ),
  MEMORY_SHORT: row(507, 'not enough memory: {reason}', 'Fork fewer children, or free memory on this host.'),
  DESCRIPTORS_SHORT: row(
    507,
    'not enough open files: {n} children need {needed} descriptors, {left} are left',
    'Fork fewer children, or raise the hard limit: `ulimit -n`, LimitNOFILE= in a unit of systemd.',
  ),
  NETNS_MISSING: row(
    409,
    "network namespace '{netns}' does not exist",
    'Make it with `ip netns add {netns}`, or drop --per-child-netns.',
  ),
  TAP_SHARED: row(
    409,
    "snapshot '{tag}' has a network card on '{tap}', which only one child can hold",
    'Use -n 1, or --net (--per-child-netns), which gives each child a network of its own.',
  ),
  NETWORK_CARD_MISSING: row(
    409,
    "snapshot '{tag}' was made without a network card, and a fork cannot add one",
    'Make one that has it: `forkd snapshot --tag NAME --net`.',
  ),
  NETWORK_RULE_INVALID: row(
    400,
    "'{rule}' is not a rule: {reason}",
    'Write --allow 10.0.0.0/8:443, --allow 1.1.1.1:53/udp, --allow-domain pypi.org or --allow-domain "*.example.org:443".',
    2,
  ),
  NETWORK_DENIED: row(
    403,
    'making a network needs root (CAP_NET_ADMIN and CAP_SYS_ADMIN) and /dev/net/tun',
    'Run as root, or without --net: the agent is reached without a network.',
  ),
  NETWORK_FAILED: row(
    500,
    'cannot make a network: {reason}',
    '`forkd doctor` says whether this kernel has what it needs; `forkd cleanup` shows what an engine that was killed left.',
  ),
  LISTEN_FAILED: row(
    409,
    'cannot listen on {host}:{port}: {reason}',
    'Choose another port with --listen (or FORKD_TARGET), or end what has this one.',
  ),
  NETWORK_FULL: row(
    507,
    'no more networks: {range} has room for {count} children',
    'Set FORKD_NET_RANGE to a larger range, e.g. 10.64.0.0/12.',
  ),
  CGROUP_FAILED: row(
    409,
    'cannot set the limit: {reason}',
    'Run as root on a host whose cgroup controllers can be written to (`forkd doctor` shows them), or ask for no limit.',
  ),
  STRICT_REFUSED: row(
    409,
    'strict: this host cannot enforce {missing}',
    'Run as root on a host that can (`forkd doctor` shows each), or do without --strict.',
  ),
  LIMITS_IMPOSSIBLE: row(
    409,
    "sandbox '{id}' is in no control group, so it cannot be limited",
    'Run as root on a host with cgroups, and make a new sandbox: `forkd doctor` shows what is there.',
  ),
  LIMIT_EXCEEDED: row(
    500,
    '{vm}: the host ended it because it exceeded its limit ({limit})',
    'Give it more: by the option of this limit, or `forkd limit` while it runs.',
  ),
  JAIL_BROKEN: row(
    500,
    '{vm}: ended because it made a system call that its jail forbids{console}',
    'The kernel log names the call (`dmesg`, audit type=1326). If nobody broke out of the guest there, report it.',
  ),
  JAIL_ENDED: row(
    500,
    '{vm}: ended because the first process of its pid namespace (forkd_warden) was ended, and all of a namespace end with its first',
    'Make a new one. Let forkd_warden processes be: each ends itself with the last VM of its template. The kernel log says if memory ran out (`dmesg`).',
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
  IMAGE_INVALID: row(
    422,
    "image '{image}' is refused: {reason}",
    'Get it again, or have it made again. Nothing of it was kept.',
  ),
  IMAGE_NOT_FOUND: row(
    404,
    "'{image}' is not an image: {reason}",
    'Give an OCI layout directory, an archive of `docker save` or OCI, a root file system (directory or tar) as a path with a slash (./image.tar), or a name in a registry (debian:12, ghcr.io/owner/name@sha256:...).',
  ),
  IMAGE_UNSUPPORTED: row(409, "image '{image}' does not run here: {reason}", 'Use an image for linux/amd64.'),
  EXTRAS_FAILED: row(
    500,
    "cannot add {packages} to '{image}': {output}",
    'Try it by hand: `forkd run --image IMAGE -- sh`. The packages come from where the image says, through the network of this host.',
  ),
  RECIPE_INVALID: row(
    422,
    "recipe '{name}' is refused: {reason}",
    'What a recipe has is described in docs/reference/recipes.md; those in recipes/ are examples.',
  ),
  RECIPE_NOT_FOUND: row(
    404,
    "there is no recipe '{name}'",
    '`forkd recipes` lists them. A directory of your own is named by a path with a slash: ./my-recipe.',
  ),
  RECIPE_FAILED: row(
    500,
    "the setup of recipe '{name}' failed: {output}",
    'It runs as root in a VM of its root disk. `set -x` in it shows the command that failed.',
  ),
  IMAGE_BUILD_FAILED: row(500, 'cannot build the guest image: {reason}', 'Run `forkd doctor`, then try again.'),

  // Transfers
  HUB_UNREACHABLE: row(
    502,
    'cannot get through to {url}: {reason}',
    'Check the network, or name another hub (--hub, FORKD_HUB_URL). Offline, bring it as a file: `forkd unpack FILE` takes a pack, `forkd from-image FILE` what `docker save` wrote. What was downloaded is kept: the same command goes on there.',
  ),
  HUB_ANSWERED: row(
    502,
    '{url} answered {status}{said}',
    '404: check the name. 401 or 403: the URL needs a user (https://USER:PASSWORD@HOST/...), or a presigned URL has expired.',
  ),
  REGISTRY_DENIED: row(
    403,
    "the registry does not give '{reference}' to this user{said}",
    'Check the name: registries say this of what is not there, too. Else log in with `docker login {host}`, `podman login`, or any other tool that writes the Docker configuration.',
  ),
  REGISTRY_NOT_FOUND: row(404, "'{reference}' is not in its registry{said}", 'Check name and tag.'),
  CREDENTIALS_UNREADABLE: row(
    500,
    'cannot read the users of registries in {path}: {reason}',
    'Mend the file, or log in again: `docker login`. DOCKER_CONFIG names another directory, REGISTRY_AUTH_FILE another file.',
  ),
  HUB_INVALID: row(502, 'the hub at {url} is not one: {reason}', 'Give --hub the URL of a registry.json.'),
  PACKAGE_NOT_FOUND: row(404, "'{name}' is not in the hub at {url}; {known}", 'Choose one of those, or another --hub.'),
  TRANSFER_REFUSED: row(
    502,
    'what {url} sends is refused: {reason}',
    'Nothing of it was kept. Ask whoever runs that server.',
  ),
  TRANSFER_BUSY: row(409, 'another forkd is downloading into {path}', 'Wait for it, or end it.'),

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
  WP_UNAVAILABLE: row(
    501,
    'memory cannot be write-protected here: {reason}',
    'It takes Linux 5.19, and root or `sysctl vm.unprivileged_userfaultfd=1`; `forkd doctor` says which is missing.',
  ),
  MEMORY_HANDSHAKE: row(
    500,
    '{vm}: cannot serve its memory: {reason}',
    'Check that the version of the virtual machine monitor is supported.',
  ),
  REMOTE_CHANGED: row(
    409,
    'what {url} has is not what it had when the snapshot was pulled from it',
    'Remove the tag with `forkd rmi` and pull it again.',
  ),
  RANGES_MISSING: row(
    502,
    '{url} does not serve parts of a file',
    'A lazy pull needs a server with range requests (RFC 9110, 14); pull without --lazy.',
  ),
  SNAPSHOT_PARTIAL: row(
    409,
    "not all of snapshot '{tag}' is here: it was pulled with --lazy",
    'Bring the rest with `forkd pull {tag}`.',
  ),
  PACK_NOT_LAZY: row(400, "pack '{path}' cannot be started before it is here: {reason}", 'Pull it without --lazy.'),
  MEMORY_LOST: row(
    500,
    '{vm} was ended: a part of its memory cannot be loaded: {reason}',
    'Check the snapshot with `forkd inspect TAG --verify`; with --eager all of it is checked before anything runs.',
  ),
  BRANCH_UNSUPPORTED: row(
    409,
    "sandbox '{id}' cannot be branched: {reason}",
    'Fork it on a host that emulates, without --cold; a single child of `forkd fork` with --live-fork.',
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
    '{vm}: the guest agent did not answer within {seconds} s; {ran}{console}',
    'Raise --boot-wait-secs, or look at the console: --keep-workdir keeps it.',
  ),
  GUEST_STUCK: row(
    504,
    '{vm}: the guest agent had answered before, and did not for {seconds} s when it was to {step}; {ran}{console}',
    'On a host that is busy try again; else look at the console: --keep-workdir keeps it.',
  ),
  AGENT_UNREACHABLE: row(502, 'cannot reach the agent at {target}: {reason}', 'Check that the sandbox still runs.'),
  AGENT_TIMEOUT: row(
    504,
    'the agent at {target} did not answer within {seconds} s',
    'Raise --timeout-secs, or check the sandbox with `forkd ping`.',
  ),
  EXEC_TIMEOUT: row(504, 'the command did not end within {seconds} s and was killed', 'Raise --timeout-secs.'),
  AGENT_ERROR: row(502, 'agent error: {error}', 'The guest refused or could not do this.'),
  ORIGIN_REFUSED: row(
    403,
    "pages of '{origin}' may not open streams of this daemon",
    'Use a program, or a page that this daemon serves.',
  ),
  GUEST_FILE_MISSING: row(404, '{error}', 'The path is one of the guest.'),
  GUEST_FILE_REFUSED: row(409, '{error}', 'The guest itself could not do this.'),
  GUEST_PORT_CLOSED: row(
    502,
    "nothing answers on port {port} of sandbox '{id}': {reason}",
    'Start the service first; it must listen on 127.0.0.1 or on all addresses of the guest.',
  ),
  GUEST_OUTDATED: row(
    409,
    'the guest agent at {target} cannot do {action}: it is older than this forkd',
    'An agent in a snapshot never changes: make the snapshot again, with `--force`.',
  ),
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
  SANDBOX_HELD: row(409, "sandbox '{id}' takes no calls: {reason}", 'Wait until that is done, then try again.'),
  CLEANUP_REFUSED: row(400, "refusing to remove '{path}': {reason}", 'Only directories that forkd made are removed.'),

  // The daemon
  TOKEN_MISSING: row(401, 'missing bearer token', 'Send `Authorization: Bearer TOKEN`, with the token of the daemon.'),
  TOKEN_WRONG: row(401, 'invalid bearer token', 'Use the token that is in the file given to --token-file.'),
  ROUTE_NOT_FOUND: row(404, 'there is no {method} {path}', 'See docs/reference/daemon.md for the routes.'),
  METHOD_NOT_ALLOWED: row(405, '{path} does not take {method}', 'The Allow header names the methods it takes.'),
  BODY_NOT_JSON: row(400, 'the request cannot be read: {reason}', 'Send one JSON document.'),
  BODY_TYPE: row(415, 'the body must be JSON', 'Send it with `Content-Type: application/json`.'),
  REQUEST_TIMEOUT: row(408, 'the request did not arrive in time', 'Send it whole and at once.'),
  HEADERS_TOO_LARGE: row(431, 'the headers are too large', 'Send shorter ones: 16 KiB in all.'),
  RATE_LIMITED: row(
    429,
    'more than {max} requests a second from this address',
    'Wait for as long as the Retry-After header says, or raise --rate-limit.',
  ),
  CONNECTIONS_FULL: row(
    503,
    'too many connections, in all or from this address',
    'Keep connections for more than one request, and close those that are not needed.',
  ),
  BODY_TOO_LARGE: row(413, 'the body is too large', 'A body has at most 2 MiB.'),
  BODY_INVALID: row(422, 'the body does not fit: {reason}', 'See docs/reference/daemon.md for the keys and types.'),
  QUERY_INVALID: row(400, 'the request does not fit: {reason}', 'See docs/reference/daemon.md.'),
  REQUEST_REFUSED: row(400, '{reason}', 'See docs/reference/daemon.md.'),
  BRANCHES_FULL: row(503, 'already {max} branches are under way', 'Try again, or raise --branch-concurrency.'),
  WORKSPACE_NOT_FOUND: row(404, "workspace '{name}' not found", 'List them with GET /v1/workspaces.'),
  WORKSPACE_EXISTS: row(409, "workspace '{name}' already exists", 'Choose another name, or delete it first.'),
  WORKSPACE_BUSY: row(
    409,
    "workspace '{name}' is being changed by another request",
    'Wait for that one, then try again.',
  ),
  WORKSPACE_STATE: row(
    400,
    "workspace '{name}' is {status}",
    'One that is running can be suspended; one that is suspended or stale can be resumed.',
  ),
  LISTENERS_FULL: row(503, 'already {max} clients listen to events', 'End one of them.'),
  AGENT_FAILED: row(500, '{action}: {reason}', 'See the status of the sandbox: GET /v1/sandboxes/ID.'),
  KEEPER_FAILED: row(
    500,
    'the sandboxes could not be made to outlive the daemon: {reason}',
    'They were ended. Try again; what the keeper needs is a process and four descriptors for each sandbox.',
  ),
  KEEPER_SILENT: row(
    500,
    'the keeper of the sandboxes of the daemon before ({path}) cannot be asked: {reason}',
    'Start the daemon again. To start without them, end the process `forkd_keeper` of that path: they end with it.',
  ),
  DAEMON_REFUSED: row(500, 'the daemon does not start: {reason}', 'See `forkd-controller serve --help`.'),

  // Commands
  WORKER_DIED: row(
    500,
    'the worker thread died in the middle of its task ({task}): {reason}',
    'Try again: the engine has gone on with new workers.',
  ),
  CANCELLED: row(499, 'interrupted', 'Everything that was started has been stopped.', 130),
  NOT_CONFIRMED: row(400, 'nothing was changed', 'Run again and answer y, or give --yes.'),
  DAEMON_UNREACHABLE: row(
    503,
    'no daemon answers at {url}: {reason}',
    'Start it with `forkd-controller serve`, or name it with --daemon-url; --daemon-ca names whom to believe.',
  ),
  DAEMON_ANSWERED: row(502, 'HTTP {status}: {reason}', '{hint}'),
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
  text.replace(/\{(\w+)\}/g, (whole, name: string) => (name in details ? plain(String(details[name])) : whole));

/** Some of it comes from guests, and is read on terminals: no sequence of theirs may reach one. */
const plain = (told: string): string => told.replace(CONTROL, '\ufffd');
const CONTROL = /[\x00-\x08\x0b-\x1f\x7f-\x9f]/g;

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
    if (code === 'EACCES' || code === 'EPERM' || code === 'EROFS')
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
