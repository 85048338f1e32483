/**
 * What the host and the guest agent say to each other.
 *
 * The framed protocol runs on a virtio-serial port named `forkd.agent.0`; one frame is
 *
 *     magic u16le 0x4b46 | type u8 | flags u8 (0) | id u32le | length u32le | payload (length bytes)
 *
 * Many requests may be under way at once; `id` is chosen by the host and echoed by the agent.
 *
 *     host                                agent
 *       |                        hello 0    |   once after boot, when the warm-up is done
 *       |  request id  {action,...}   -->   |   payload: one JSON object, as on TCP 8888
 *       |  <--  reply id  {...}             |   payload: one JSON object; ends the request
 *
 * A stream is a request that moves bytes until its reply. Who sends data never has more under way than the other side has granted:
 *
 *       |  request id  {action, window} -->  |   the host takes `window` bytes
 *       |  <--  opened id  {...}             |   now the host may send INPUT_WINDOW bytes
 *       |  <-->  data id  channel, bytes     |   channel: u8
 *       |  <-->  credit id  bytes (u32le)    |   so many more may be sent
 *       |  <-->  end id  channel             |   that channel has ended
 *       |  <--  reply id  {...}              |   ends the stream
 *
 * The same JSON objects travel on TCP 8888 as one line per connection (the reference's protocol).
 * An agent inside a snapshot never upgrades, so both sides state a generation; the lower one wins, and a
 * generation only ever adds actions, keys and frame types.
 */
export const AGENT_GENERATION = 2;
/** The first that has streams, files and ports. */
export const STREAMS_GENERATION = 2;
export const AGENT_PORT_NAME = 'forkd.agent.0';
export const AGENT_TCP_PORT = 8888;

export const FRAME_MAGIC = 0x4b46;
export const FRAME_HEADER_BYTES = 12;

/** Values of the `type` byte. */
export const FrameType = { hello: 0, request: 1, reply: 2, opened: 3, data: 4, credit: 5, end: 6 } as const;

/** Bytes that the host may send ahead in a stream before it needs a credit. */
export const INPUT_WINDOW = 256 * 1024;
/** Data in one frame from the host: the guest reads it into one place. */
export const STREAM_CHUNK_BYTES = 64 * 1024;

/** Of a program: what it reads and writes. Every other stream has `input` to the guest and `output` from it. */
export const Channel = { stdin: 0, stdout: 1, stderr: 2, input: 0, output: 1 } as const;

/** Payload of the hello frame. */
export interface Hello {
  generation: number;
  /** Milliseconds of guest uptime when the agent was ready. */
  uptime_ms: number;
  /** Its version; empty: there is none. */
  python: string;
  numpy_version: string;
}

export type GuestRequest =
  | { action: 'ping' }
  | {
      action: 'exec';
      args: string[];
      timeout?: number;
      env?: Record<string, string>;
      cwd?: string;
      stdin?: string;
      user?: string;
    }
  | { action: 'eval'; code: string }
  | ClockRequest
  | SealRequest
  | ForkRequest
  | { action: 'runs' }
  | ControlRequest
  | FileRequest
  | DetachedRun;

/** How a program is run, beside its arguments. */
export interface RunOptions {
  args: string[];
  env?: Record<string, string>;
  cwd?: string;
  /** NAME, UID, NAME:GROUP or UID:GID. */
  user?: string;
  /** Seconds until it is killed with all that it started; null or absent: never. */
  timeout?: number | null;
  /** On a terminal of its own, of this size; stdout and stderr are one then. */
  tty?: boolean;
  rows?: number;
  cols?: number;
  /** It gets what the host sends, instead of /dev/null. */
  stdin?: boolean;
}

/** Requests that open a stream. `window`: bytes that the host takes before it grants more. */
export type StreamRequest = (
  | ({ action: 'run' } & RunOptions)
  | { action: 'attach'; run: number }
  | { action: 'connect'; port: number; host?: string }
  | { action: 'connect'; path: string }
  | { action: 'read_file'; path: string }
  | { action: 'write_file'; path: string; mode?: number; parents?: boolean }
  | { action: 'pack'; path: string }
  | { action: 'unpack'; path: string }
  | { action: 'watch'; path: string; recursive?: boolean }
) & { window?: number };

/** A program in the background: nobody hears it until an `attach`. Answered at once. */
export type DetachedRun = { action: 'run'; detach: true } & RunOptions;

/** To a stream under way, by the id of its request, or to a program in the background. */
export type ControlRequest = { action: 'control' } & ({ stream: number } | { run: number }) &
  ({ signal: string | number } | { rows: number; cols: number } | { close: true });

export type FileRequest =
  | { action: 'stat'; path: string }
  | { action: 'list'; path: string }
  | { action: 'remove'; path: string; recursive?: boolean }
  | { action: 'make_dir'; path: string; mode?: number; parents?: boolean };

export interface FileEntry {
  name: string;
  type: 'file' | 'dir' | 'link' | 'other';
  size: number;
  /** Permission bits. */
  mode: number;
  uid: number;
  gid: number;
  mtime_unix: number;
  /** Of a link. */
  target?: string;
  /** Of a link, in `stat`: what is there; null when nothing is. */
  leads_to?: string | null;
}

export const FILE_EVENTS = ['created', 'modified', 'written', 'deleted', 'moved', 'attributes', 'overflow'] as const;

/** A line of a `watch`, as JSON. */
export interface FileEvent {
  /**
   * `written`: closed by who had it open for writing. `deleted`: also moved out of sight. `overflow`: more happened than was taken, so something
   * was missed. The stream ends when what is watched is gone.
   */
  event: (typeof FILE_EVENTS)[number];
  path: string;
  is_dir: boolean;
  /** Of what was moved: where it was. */
  from?: string;
}

/** A program in the background. */
export interface RunFacts {
  run: number;
  pid: number;
  args: string[];
  tty: boolean;
  attached: boolean;
  began_unix: number;
  /** Null while it runs. */
  exit_code: number | null;
}

/** How a stream ended. `error` is present only on failure. */
export interface StreamReply {
  exit_code: number;
  error?: string;
  timed_out?: boolean;
  /** Bytes of a file that were moved. */
  size?: number;
  entries?: number;
}

/** Answers to what is asked without a stream. */
export interface PlainReply {
  exit_code: number;
  error?: string;
  run?: number;
  pid?: number;
  runs?: RunFacts[];
  entry?: FileEntry;
  entries?: FileEntry[];
  truncated?: boolean;
}

/**
 * Sets the wall clock again. A child whose code was still cold took long over its `fork`, and so did the time in it to
 * arrive: the host then sends this, which takes far less.
 */
export interface ClockRequest {
  action: 'clock';
  /** Host wall clock, nanoseconds since the epoch as a decimal string. */
  clock_ns: string;
}

/**
 * Sent to a parent as the last thing before it is frozen: from then on exec and eval are refused (error `NotReleased: ...`)
 * until a `fork` succeeds, so that no copy answers with its parent's identity. A restored or forked copy wakes up sealed.
 * The host warms the fork path by sending fork and eval to the parent several times before the final seal.
 */
export interface SealRequest {
  action: 'seal';
}

/** Gives a fresh child its own identity. A sealed agent refuses exec and eval until it has succeeded. May be repeated. */
export interface ForkRequest {
  action: 'fork';
  /** At least 32 bytes of host entropy, base64. */
  entropy: string;
  /** Host wall clock, nanoseconds since the epoch as a decimal string (a double cannot hold it). */
  clock_ns: string;
  hostname: string;
  /** 32 lower-case hex digits. */
  machine_id: string;
  /** The child's number in its fan-out, from 1. */
  index: number;
  /** Added to the environment of every later exec and eval. */
  env?: Record<string, string>;
}

/** What the agent did to make this child unique; a step that failed is in `failed` and the child is not released. */
export interface ForkReceipt {
  generation: number;
  /**
   * Names of the steps done: `kernel_rng`, `clock`, `hostname`, `machine_id`, `boot_id`, `python_random`, `numpy_random`,
   * `uuid`, `openssl`, `tempfile`, `node`, `env`, `hooks`.
   */
  done: string[];
  /** Steps that do not apply to this guest (numpy not installed, say), with the reason. */
  skipped: Record<string, string>;
  failed: Record<string, string>;
  boot_id: string;
}

export interface PingReply {
  pong: true;
  numpy_version: string;
  pid: number;
  agent_lang: 'python' | 'node' | 'c';
  warmup_ready: boolean;
  generation: number;
  /** False between a seal and the next successful `fork`. */
  released: boolean;
}

/** `error` is present only on failure: clients of the reference test for the key. */
export interface ExecReply {
  stdout: string;
  stderr: string;
  exit_code: number;
  timed_out?: boolean;
  error?: string;
  traceback?: string;
}

export interface EvalReply {
  /** `repr` of the value of the last expression, or `None`. */
  result?: string;
  /** What the code wrote to stdout and stderr while it ran. */
  stdout?: string;
  stderr?: string;
  error?: string;
  traceback?: string;
  result_json?: string;
  stack?: string;
  exit_code: number;
}

export interface SealReply {
  sealed: true;
  exit_code: 0;
}

export interface ForkReply {
  receipt: ForkReceipt;
  exit_code: 0 | 1;
  error?: string;
}

export type GuestReply = PingReply | ExecReply | EvalReply | SealReply | ForkReply | PlainReply;
