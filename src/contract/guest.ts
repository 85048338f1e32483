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
 * The same JSON objects travel on TCP 8888 as one line per connection (the reference's protocol).
 * An agent inside a snapshot never upgrades, so both sides state a generation; the lower one wins, and a
 * generation only ever adds actions, keys and frame types.
 */
export const AGENT_GENERATION = 1;
export const AGENT_PORT_NAME = 'forkd.agent.0';
export const AGENT_TCP_PORT = 8888;

export const FRAME_MAGIC = 0x4b46;
export const FRAME_HEADER_BYTES = 12;

/** Values of the `type` byte. */
export const FrameType = { hello: 0, request: 1, reply: 2 } as const;

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
  | { action: 'exec'; args: string[]; timeout?: number; env?: Record<string, string>; cwd?: string; stdin?: string }
  | { action: 'eval'; code: string }
  | ClockRequest
  | SealRequest
  | ForkRequest;

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

export type GuestReply = PingReply | ExecReply | EvalReply | SealReply | ForkReply;
